"""K-FAC: natural-gradient descent with Kronecker-factored curvature, in the ordinary loop."""

from typing import ClassVar, final

from kobai.optim.factored import FactoredOptimizer


@final
class KFAC(FactoredOptimizer):
    r"""Natural gradient with the Kronecker-factored Fisher matrix of a model's own predictions.

    The training loop is the usual one: ``zero_grad``, forward, ``loss.backward()``, ``step()``.
    When statistics are due, a second, partial backward pass at labels drawn from the model runs
    inside ``loss.backward()``; parameters' gradients are not touched and the scale of the loss
    plays no part.

    Length of step, momentum and damping are measured (``lr="auto"``, ``damping="auto"``; see
    `kobai.optim.step_control`): every `control_every` steps, more often at the start, the step is
    α Δ + μ δ with Δ = −(F + λ)⁻¹ gradient and δ the last update, α and μ minimising the quadratic
    model of the minibatch with the exact Gauss-Newton matrix. The minibatch is repeated at the new
    parameters, and the step halved until the model is right about it; the next minibatch is
    repeated at the old ones, and the damping falls only if both agree with the model. Targets are
    read off the gradient at the outputs (`Likelihood.recover_targets`). Dropout masks are repeated
    as they were, and normalisation over the batch takes the statistics of the same batch; running
    averages are put back. In half precision under autocast these measurements are made in the
    parameters'.

    With a learning rate in numbers the step is
    ``θ ← (1 − lr·weight_decay) θ − ν·lr·(F + λ)⁻¹ m`` with m ← momentum · m + gradient,
    F + λ the damped Fisher blocks, and ν ≤ 1 such that the whole step d, momentum included, keeps
    dᵀ(F + λ)d ≤ kl_bound: up to the damping, twice the Kullback-Leibler divergence between the
    predictions before and after.

    Two dampings: λ acts on parameters. `output_damping` c acts on outputs, F = Jᵀ(H + c)J/W with H
    the output Hessian of the likelihood, the Fisher information of the predictions. Where
    predictions become certain H vanishes, and with it the curvature that held large steps back; a
    change of outputs keeps the price c/2 times its square. Zero gives the Fisher matrix alone, and
    then wants a smaller learning rate or more λ.

    Linear layers, convolutions and their transposes, embeddings, attention and recurrent layers
    have Kronecker-factored blocks, normalisations a block for scale and shift of each unit, and
    every other parameter a diagonal one, all from the same labels. `print(optimizer)` shows which.
    Layers used several times, or sharing their weight, have the product nearest to the sum over
    pairs of uses; see `kobai.curvature.factor_sums`.

    Args:
        model: The model. Call the model itself, so that its hooks run.
        likelihood: What its outputs mean: "categorical" (logits), "bernoulli" (logits), "gaussian"
            (means), a kobai likelihood or a torch loss module. Its normalisation should be the
            loss's: for a mean over tokens, take ``Categorical(reduction="terms")``.
        lr: "auto", or the learning rate per step. Schedulers work on it as usual; beside "auto" it
            is a factor on the measured step, which starts at 1.
        damping: λ, added to F; shared out between the factors by their scales (π). A number, a
            schedule step ↦ number, "auto", or a `LevenbergMarquardt` rule.
        momentum: Coefficient μ in [0, 1) of the heavy ball beside a learning rate in numbers.
        nesterov: Whether that step goes along (F + λ)⁻¹(gradient + μ m) instead of (F + λ)⁻¹m, as
            in ``torch.optim.SGD``.
        weight_decay: Decoupled weight decay, as in AdamW; times lr, and under "auto" times the
            share of a whole natural-gradient step that is made, min(1, α) in units of the
            likelihood's own loss. Steps that are not made decay nothing.
        statistics_every: Steps between two updates of the factors. The first steps update more
            often: the interval is a tenth of the number of steps made. "auto": 10, halved while
            averages lag behind and doubled up to 100 while they do not (`kobai.optim.refresh`).
        inverse_every: Steps between two inversions. Denser at the start likewise: half the number
            of steps made. "auto": 100, halved and doubled likewise up to 1,000; an update of the
            factors that finds them, or the damping, far from those of the inverses inverts at once.
        kl_bound: Trust region on the KL size of a step, in nats. "auto": its radius is what the
            minibatch allows, found by halving steps and doubled while the model holds; beside a
            learning rate in numbers it is 0.03. A number: no step is larger. None: none beside a
            learning rate in numbers. A Gaussian likelihood has unit variance, so standardise
            targets, or raise the bound by their variance.
        output_damping: c ≥ 0, added to the output Hessian, in units of the likelihood's scale; for
            categorical outputs on differences of logits only.
        control_every: Most steps from one measurement to the next.
        labels: "sampled" (labels drawn from the model), "exact" (the expectation over labels, one
            backward pass an output) or "observed" (the data's labels: the empirical Fisher).
        sharing: How places where a layer uses its weights (tokens, positions, time steps) are
            taken: "expand", independent of each other; "trace", the same with each block's trace
            exact; or "reduce", summed over first. See `kobai.curvature.factor_sums`.
        statistics_examples: How many examples of a batch (of each process) the factors of a layer
            are summed over at an update. "auto": at least 64, and rows as many as its larger factor
            has lines, but 256 at least: the moving average has tens of times as many. A number, or
            "all". Batches that do not make two such blocks are whole: those below 128, and without
            tokens or positions those below 512. Blocks take turns. See
            `kobai.optim.statistics_part`.
        distributed: Whether processes of `torch.distributed`, where it is initialised, train one
            model together: statistics are then those of all of them, and inversions are shared out.
        product_dtype: Precision in which inverses are kept and multiplied with gradients. Default:
            that of the factors, at least float32, but for float32 on a CPU that multiplies bfloat16
            matrices: there rows of linear layers are rounded to bfloat16 for the factors (sums stay
            float32), and wide layers multiply by an inverse in two bfloat16 pieces where that is
            measured to move the step by less than 1 % of its length. ``torch.float32`` turns both
            off. ``torch.bfloat16`` rounds the inverses themselves, which can spoil a step along
            directions of much curvature. Not for `EKFAC`.
        inverse: How factors are inverted: "cholesky"; "eigh" (dearer; negative eigenvalues count as
            zero); "newton-schulz", products of matrices only, from the last inverses where those
            are near, checked by its residual and left to Cholesky, counted, where it does not
            converge; see `kobai.curvature.shifted_inverse`. Not for `EKFAC`.
        factor_dtype: Precision of the factors' sums, averages and inversion: ``torch.float32`` or
            ``torch.float64``. Default: that of the parameters, but at least float32. Gradients are
            multiplied in the latter all the same.
        generator: Draws labels. Default: one of its own, seed 0, kept in `state_dict`.

    Raises:
        ValueError: If a setting is out of range or the model has nothing to train.
        RuntimeError: From `step`, if the loss has not the likelihood's form and no closure was
            given, or the model does not repeat itself on the same inputs and random state.

    Non-finite gradients or statistics are not applied but counted in `diagnostics`. A parameter
    whose block has no statistics yet stays where it is until the next pass has brought them; one
    that was frozen at first is trained once it is given to `add_param_group`.

    Cost of a step beyond the gradient: MK(M + K) multiplications for a layer with M outputs and K
    inputs, or n(M² + K² + MK) for a wide linear layer on a CPU where the n rows of the batch are
    few (see `kobai.optim.gradient_rows`); with statistics due, a backward pass without weight
    gradients and R(M² + K²) for the R rows that are summed over, and the gradients of eight
    examples for the traces; with an inversion due, (M³ + K³)/2; with a measurement due, four
    forward passes, one of them at the step after. See `kobai.curvature.kronecker` for the factors.

    Source: Martens and Grosse 2015, Optimizing neural networks with Kronecker-factored approximate
    curvature (§5, §6.3, §6.5, §7); the bound on the step: Ba, Grosse and Martens 2017, Distributed
    second-order optimization using Kronecker-factored approximations (§5).

    Example:
        >>> import torch
        >>> from kobai.optim import KFAC
        >>> model = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1)
        >>> _ = torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        >>> optimizer = KFAC(model, "gaussian", lr=0.1)
        >>> x, y = torch.eye(2), torch.ones(2, 1)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = 0.5 * (model(x) - y).square().sum() / 2
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> bool(loss < 1e-3)
        True
    """

    corrected: ClassVar[bool] = False
