"""K-FAC: natural-gradient descent with one curvature block per layer, in the ordinary loop."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.curvature.coverage import Coverage
from kobai.optim.damping import LevenbergMarquardt, check_damping
from kobai.optim.entry import OptimizerEntry, settings_of
from kobai.optim.kfac.distribution import joined, ranks
from kobai.optim.kfac.gradient_rows import RowNotes
from kobai.optim.kfac.measured import Measured
from kobai.optim.kfac.observe import Observation, Observer
from kobai.optim.kfac.plan import plan_blocks
from kobai.optim.kfac.preconditioner import Preconditioner
from kobai.optim.kfac.refresh import Refresh
from kobai.optim.kfac.settings import GROUP, SPACE, KFACSettings, all_finite, check_group
from kobai.optim.kfac.stack import waits
from kobai.optim.kfac.statistics import Statistics
from kobai.optim.kfac.step_size import Directions, Fixed, StepSize, finite_on_device
from kobai.optim.state import keep_state
from kobai.problem import Likelihood, as_likelihood

_FLUSH_EVERY = 20
"""Steps between two looks for numbers that have decayed to almost nothing: it takes hundreds."""

COUNTS: tuple[str, ...] = (
    "skipped_steps",
    "bounded_steps",
    "statistics",
    "refused_statistics",
    "waiting_blocks",
    "inversions",
    "inversions_float64",
    "inversions_damped",
    "inversions_failed",
    "inversions_cholesky",
    "products_from_rows",
    "changed_gradients",
)
"""Names of the counts over an optimizer's life; see `KFAC.diagnostics`."""


class KFAC(torch.optim.Optimizer):
    r"""Natural gradient with the Kronecker-factored Fisher matrix of a model's own predictions.

    The training loop is the usual one: ``zero_grad``, forward, ``loss.backward()``, ``step()``.
    When statistics are due, a second, partial backward pass at labels drawn from the model runs
    inside ``loss.backward()``; parameters' gradients are not touched and the scale of the loss
    plays no part.

    Length of step, momentum and damping are measured (``lr="auto"``, ``damping="auto"``; see
    `kobai.optim.kfac.measured`): every `control_every` steps, more often at the start, the step is
    α Δ + μ δ with Δ = −(F + λ)⁻¹ gradient and δ the last update, α and μ minimising the quadratic
    model of the minibatch with the exact Gauss-Newton matrix. The minibatch is repeated at the new
    parameters, and the step halved until the model is right about it; the next minibatch is
    repeated at the old ones, and the damping falls only if both agree with the model. Targets are
    read off the gradient at the outputs (`Likelihood.recover_targets`). Dropout masks are repeated
    as they were, and normalisation over the batch takes the statistics of the same batch; running
    averages are put back. In half precision under autocast these measurements are made in the
    parameters' precision.

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

    Under the default ``structure="kronecker"`` linear layers, convolutions and their transposes,
    embeddings, attention and recurrent layers have Kronecker-factored blocks, normalisations a
    block for scale and shift of each unit, and every other parameter a diagonal one, all from the
    same labels. `print(optimizer)` shows which.
    Layers used several times, or sharing their weight, have the product nearest to the sum over
    pairs of uses; see `kobai.curvature.blocks.factor_sums`.

    Args:
        model: The model. Call the model itself, so that its hooks run.
        likelihood: What its outputs mean: "categorical" (logits), "bernoulli" (logits), "gaussian"
            (means), a kobai likelihood or a torch loss module. Its normalisation should be the
            loss's: for a mean over tokens, take ``Categorical(reduction="terms")``.
        generator: Draws labels. Default: one of its own, seed 0, kept in `state_dict`.
        **settings: The fields of `KFACSettings`, by name.

    Raises:
        ValueError: If a setting is out of range or the model has nothing to train.
        RuntimeError: From `step`, if the loss has not the likelihood's form and no closure was
            given, or the model does not repeat itself on the same inputs and random state.

    Non-finite gradients or statistics are not applied but counted in `diagnostics`. A parameter
    whose block has no statistics yet stays where it is until the next pass has brought them; one
    that was frozen at first is trained once it is given to `add_param_group`.

    Cost of a step beyond the gradient: MK(M + K) multiplications for a layer with M outputs and K
    inputs, or n(M² + K² + MK) for a wide linear layer on a CPU where the n rows of the batch are
    few (see `kobai.optim.kfac.gradient_rows`); with statistics due, a backward pass without weight
    gradients and R(M² + K²) for the R rows that are summed over, and the gradients of eight
    examples for the traces; with an inversion due, (M³ + K³)/2; with a measurement due, four
    forward passes, one of them at the step after.

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

    settings: KFACSettings

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module = "categorical",
        *,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        self.settings = KFACSettings.of(**settings)
        self.model = model
        self.likelihood = as_likelihood(likelihood)
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._plan = plan_blocks(model)
        self._demoted: frozenset[str] = frozenset()
        self._blocks: Preconditioner | None = None
        self._waiting = False
        self._steps = 0
        self._counts = dict.fromkeys(COUNTS, 0)
        super().__init__([p for p in model.parameters() if p.requires_grad], self.settings.group())
        self._refreshes = Refresh(self.settings)
        self._fixed = Fixed(self.settings, self._forget_momentum_where)
        self._step_size: StepSize = self._fixed
        if self.settings.lr == "auto" or isinstance(self.settings.rule, LevenbergMarquardt):
            self._step_size = Measured(model, self.likelihood, self.settings, self._fixed)
        # Rows of the gradient stand for products with inverses, and not for a look ahead.
        rows = self.settings.structure == "kronecker" and not self.settings.nesterov
        statistics = Statistics(
            self.likelihood, self.settings, self._plan, self.generator, self._made
        )
        self._observer = Observer(model, statistics, RowNotes() if rows else None)
        self._schedule()
        keep_state(self, self._name)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with the gradients as they stand.

        Args:
            closure: Zeroes gradients, runs forward and backward, and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: If no statistics have ever been seen although there are gradients: the
                model was not called, or its output did not take part in the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        seen = self._observe()
        if self._average(seen):  # there were new statistics
            self._refresh()
        directions = self._precondition()
        if directions is not None:  # there are gradients, and they are finite
            groups, inversions = self.param_groups, self._counts["inversions"]
            move = self._step_size.move(self._steps, groups, directions, seen, inversions, closure)
            if move is None:  # its size is not finite
                self._start_afresh()
            else:
                move.apply()
        self._steps += 1
        self._schedule()
        return loss

    def _observe(self) -> Observation:
        """Take what the step's passes have shown, and what was computed beside them.

        Passes from here to the end of the step are not those of the user's loop.
        """
        self._refreshes.take_over()
        rule = self.settings.rule
        if callable(rule) and not isinstance(rule, LevenbergMarquardt):
            for group in self.param_groups:
                group["damping"] = check_damping(rule(self._steps), positive=True)
        seen = self._observer.take()
        self._observer.paused = True
        return seen

    def _average(self, seen: Observation) -> bool:
        """Take new statistics into the averages, and say whether there were any."""
        sums = seen.sums
        if self.settings.distributed and seen.gathered:
            sums = joined(sums, self._made(), self.settings.precision)
        if sums.bypassed:
            # Their weights are used behind their back: diagonal blocks from now on. What was
            # gathered is indexed by the old plan; the next pass gathers anew.
            self._demoted |= sums.bypassed
            self._replan()
            self._waiting = True
            return False
        if self._blocks is not None and not self._blocks.fits():
            self._replan()  # the model has changed device or precision
        if not sums.passes:
            return False
        blocks = self._made()
        refused = blocks.average(sums.moments, sums.squares, sums.weight)
        self._counts["refused_statistics"] += refused
        self._counts["statistics"] += 1
        self._refreshes.updated(self._steps, blocks)
        return True

    def _refresh(self) -> None:
        """Recompute the inverses from the averages, if it is time."""
        damping = float(self.param_groups[0]["damping"])
        if not self._refreshes.inverse_due(self._steps, damping):
            return
        groups = self.param_groups
        found = self._refreshes.renew(self._made(), lambda group: groups[group]["damping"])
        for name, count in dataclasses.asdict(found).items():
            self._counts[f"inversions_{name}"] += count
        self._counts["inversions"] += 1
        self._refreshes.inverted(self._steps, damping)

    def _precondition(self) -> Directions | None:
        """Precondition gradients or their momentum; None if there is nothing sound to go by."""
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients:
            return None
        if self._refreshes.statistics.last is None and not self._waiting:
            raise RuntimeError(
                "there are gradients but no statistics: call the model itself (not "
                "model.forward) and let the loss depend on its output"
            )
        finite = self._fixed.finite = self._finite_unread(gradients)
        if finite is None and not all_finite(gradients):
            if self._observer.rows is not None:
                self._observer.rows.forget()
            self._counts["skipped_steps"] += 1
            return None
        blocks = self._made()
        if self._steps % _FLUSH_EVERY == 0:
            blocks.flush()
        rows, noted = {}, self._observer.rows
        if noted is not None and noted.layers:
            rows, changed = noted.take()
            self._counts["changed_gradients"] += changed
            blocks.hand_over(rows)
        found = blocks.precondition(self.param_groups, self.settings, finite)
        self._counts["products_from_rows"] += sum(own.used for own in rows.values())
        waiting = sum(own.waiting for _, own in found)
        self._waiting = waiting > 0
        self._counts["waiting_blocks"] += waiting
        return found

    def _finite_unread(self, gradients: list[Tensor]) -> Tensor | None:
        """Ask a device, unread, whether gradients are finite, where it decides about the step."""
        unread = (
            self._step_size is self._fixed
            and not self.settings.nesterov
            and waits(gradients[0])
            and len({g.device for g in gradients}) == 1
        )
        return finite_on_device(gradients) if unread else None

    def _start_afresh(self) -> None:
        """Forget the momentum after finite gradients so large that their squares are not."""
        if self._fixed.finite is None:
            self._made().forget_momentum()
            self._counts["skipped_steps"] += 1

    def _forget_momentum_where(self, flag: Tensor) -> None:
        for stack in self._made().stacks:
            stack.momentum.masked_fill_(flag, 0.0)

    def _schedule(self) -> None:
        """Say what is wanted of the coming passes."""
        self._observer.gathers = self._waiting or self._refreshes.statistics_due(self._steps)
        self._observer.keeps = self._step_size.keeps_passes(self._steps)
        self._observer.paused = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters of the model, such as newly unfrozen ones; see `torch.optim.Optimizer`.

        Raises:
            ValueError: If a parameter does not belong to the model, or a number is out of range.
        """
        super().add_param_group(param_group)
        known = {id(p) for p in self.model.parameters()}
        if any(id(p) not in known for p in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise ValueError("K-FAC can only train parameters of the model it was made for")
        check_group(self.param_groups[-1])
        if len(self.param_groups) > 1:
            self._replan()

    def _replan(self) -> None:
        """Give the present parameters their blocks anew, keeping what still fits."""
        self._refreshes.take_over()
        saved = list(self._blocks.saved()) if self._blocks is not None else []
        chosen = [p for group in self.param_groups for p in group["params"]]
        self._plan = plan_blocks(self.model, chosen, self._demoted)
        self._observer.watch(self._plan)
        self._blocks = None
        blocks = self._made()
        for parameter, entry in saved:
            if blocks.takes(parameter, entry):
                blocks.restore(parameter, entry)

    def _made(self) -> Preconditioner:
        """The blocks, allocated when first needed."""
        if self._blocks is None:
            group_of = {
                id(p): index
                for index, group in enumerate(self.param_groups)
                for p in group["params"]
            }
            self._blocks = Preconditioner(self._plan, group_of, self.settings)
            if self._observer.rows is not None:
                # Gradients of several processes are averages of products.
                single = not self.settings.distributed or ranks() == 1
                self._observer.rows.choose(self._blocks.wide() if single else {})
        return self._blocks

    def __repr__(self) -> str:
        group, own = self.param_groups[0], self.settings
        numbers = ", ".join(f"{name}={group[name]:g}" for name in GROUP)
        words = [name for name in ("lr", "damping") if getattr(own, name) == "auto"]
        if isinstance(own.damping, LevenbergMarquardt):
            words.append("damping")
        lines = [
            f"{type(self).__name__}({numbers}{', nesterov' * own.nesterov}"
            f"{' (automatic: ' + ' and '.join(words) + ')' if words else ''}, "
            f"kl_bound={own.kl_bound}, output_damping={own.output_damping}, "
            f"statistics_every={own.statistics_every}, inverse_every={own.inverse_every}, "
            f"labels={own.labels!r}, {self.likelihood!r})"
        ]
        table = self.coverage()
        return "\n".join([*lines, table.table(4), f"in all: {table.summary(4)}"])

    def coverage(self) -> Coverage:
        """Return every block: its parameters, kind, sizes, memory, refresh cost and the reason."""
        return self._plan.table(self.settings.structure)

    def diagnostics(self) -> dict[str, Any]:
        """Return what happened so far.

        Returns:
            Counts: "steps", "skipped_steps" (gradients not finite), "bounded_steps" (the trust
            region was active), "statistics" and "inversions" (updates made), "refused_statistics"
            (not finite), "waiting_blocks" (blocks left where they were for want of statistics,
            summed over steps), "inversions_float64", "inversions_damped" (more damping was needed)
            "inversions_failed" (the old inverse was kept) and "inversions_cholesky" (Newton-Schulz
            did not reach its accuracy, so Cholesky was taken). "products_from_rows" counts layers'
            steps made from the rows of their gradient, "changed_gradients" those of which rows were
            there but not the gradient's (see `kobai.optim.kfac.gradient_rows`). Of the last step:
            "step_scale" ν and "kl", dᵀ(F + λ)d.

            Where something is measured also "models" (quadratic models made), "unmodelled_steps"
            (something was not finite: not made), "shortened_trials" (halvings), "rejected_steps"
            (no length was good: not made), "damping_raised", "damping_lowered", "damping_noise"
            (noise left it, or took it back towards where it began). "rate" α, "momentum_rate" μ,
            the "share" of them that is made, the trust "radius", the reduction "ratio", "kl" then
            being δᵀGδ. "decisions": a dictionary for each judgement of the damping, with "step",
            "damping", "predicted" change, "ratio" and its "error" on the step's own examples,
            "fresh_ratio" and "fresh_error" on those of the next step (None where they were the
            same), "action" and "next".

            Where intervals are automatic, "statistics_interval" and "inverse_interval" in steps,
            and what they follow, "statistics_staleness" and "inverse_staleness" (see
            `kobai.optim.kfac.refresh`). Always the present "damping".
        """
        self._counts["inversions_failed"] += self._refreshes.failed()
        found: dict[str, Any] = {"steps": self._steps, **self._counts}
        for name, value in self._step_size.diagnostics().items():
            found[name] = found.get(name, 0) + value if name in self._counts else value
        found |= self._refreshes.diagnostics()
        return found | {"damping": self.param_groups[0]["damping"]}

    def close(self) -> None:
        """Take the hooks off the model; the optimizer gathers no more statistics."""
        self._observer.close()

    @property
    def _name(self) -> str:
        """Whose state this is."""
        return "ekfac" if self.settings.structure == "ekfac" else "kfac"

    def _export(self) -> tuple[Iterable[tuple[nn.Parameter, dict[str, Any]]], dict[str, Any]]:
        """Return what is to be saved, by parameter, and what belongs to none; see `keep_state`."""
        self._refreshes.take_over()
        found = self.diagnostics()
        entries = {id(p): (p, dict(entry)) for p, entry in self._made().saved()}
        memory = self._step_size.memory()
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) in memory:
                    entries.setdefault(id(p), (p, {}))[1]["last_update"] = memory[id(p)]
        return list(entries.values()), {
            "control": self._step_size.export(),
            "steps": self._steps,
            "refreshes": self._refreshes.export(),
            "turns": self._observer.statistics.turns,
            "waiting": self._waiting,
            "demoted": sorted(self._demoted),
            "counts": {name: found[name] for name in COUNTS},
            "last": {name: found.get(name, 0.0) for name in ("step_scale", "kl")},
            "generator": self.generator.get_state(),
        }

    @torch.no_grad()
    def _restore(
        self, entries: list[tuple[nn.Parameter, dict[str, Any]]], shared: dict[str, Any]
    ) -> None:
        """Put back what `_export` gave; see `keep_state`."""
        self._refreshes.side = None
        self._demoted = frozenset(shared["demoted"])
        self._blocks = None
        self._replan()
        self._step_size.restore(shared["control"])
        for parameter, entry in entries:
            if "last_update" in entry:
                update = entry["last_update"].clone().to(parameter)
                self._step_size.memory()[id(parameter)] = update
            if "updates" in entry:
                self._made().restore(parameter, entry)
        self._steps = shared["steps"]
        self._refreshes.restore(shared["refreshes"])
        self._observer.statistics.turns = shared.get("turns", 0)  # missing in older states
        self._waiting = shared["waiting"]
        self._counts.update(shared["counts"])
        for name in self._fixed.counts:
            self._fixed.counts[name] = 0  # they are among the others already
        self._step_size.last = dict(shared["last"])
        self.generator.set_state(shared["generator"].cpu())
        self._schedule()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        groups = [group["params"] for group in self.param_groups]
        own = type(self), self.model, self.likelihood, self.settings
        return _rebuild, (*own, groups, self.state_dict())

    def __getattr__(self, name: str) -> Any:
        """Return a setting that is asked of the optimizer itself."""
        settings = self.__dict__.get("settings")
        if settings is not None and name in settings.__dataclass_fields__:
            return getattr(settings, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


@final
class EKFAC(KFAC):
    """K-FAC in eigenbases with second moments measured: ``KFAC(…, structure="ekfac")``.

    The block of a layer is (Q_B ⊗ Q_A) diag(s) (Q_B ⊗ Q_A)ᵀ: Q_A and Q_B diagonalise the factors of
    `KFAC`, and s is the mean square of single examples' gradients turned into that basis, where
    K-FAC has products of eigenvalues. Among all diagonals in that basis this s is nearest to the
    layer's Fisher block in Frobenius norm, so the block is never further from it than K-FAC's (in
    the basis of the same statistics). Bases are renewed with the inversions of K-FAC, s with every
    update of the statistics; after a renewal it starts at the products of eigenvalues, which count
    as one observation. The damping is exact, (F + λ)⁻¹, and may change from step to step.

    s is exact example by example, also where a layer shares its weights over places or is used
    several times: squares are taken of sums over places. (Layers whose input does not keep examples
    apart take every row for an example.)

    Args:
        model: See `KFAC`, also for all that follows; settings, trust region, control of steps,
            state and counters are the same.

    Cost of a step beyond the gradient: 2 MK(M + K) multiplications for a layer with M outputs and K
    inputs, twice K-FAC's; with statistics due, K-FAC's and R(M² + K²) + RMK for R rows; with bases
    due, two eigendecompositions, about 10 (M³ + K³).

    Source: George et al. 2018, Fast approximate natural gradient descent in a Kronecker-factored
    eigenbasis (§3, Algorithm 1).

    Example:
        >>> import torch
        >>> from kobai.optim import EKFAC
        >>> model = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1)
        >>> _ = torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        >>> optimizer = EKFAC(model, "gaussian", lr=0.1, damping=0.03)
        >>> x, y = torch.eye(2), torch.ones(2, 1)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = 0.5 * (model(x) - y).square().sum() / 2
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> bool(loss < 1e-3)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module = "categorical",
        *,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            model, likelihood, generator=generator, **{"structure": "ekfac", **settings}
        )


def _rebuild(
    kind: type[KFAC],
    model: nn.Module,
    likelihood: Likelihood,
    settings: KFACSettings,
    groups: list[list[nn.Parameter]],
    state_dict: dict[str, Any],
) -> KFAC:
    """Make a copied or unpickled optimizer, which watches the copied model."""
    optimizer = kind(model, likelihood, **settings_of(settings))
    optimizer.param_groups[0]["params"] = groups[0]
    for parameters in groups[1:]:
        optimizer.add_param_group({"params": parameters})
    optimizer.load_state_dict(state_dict)
    return optimizer


def _signature(kind: type[KFAC], structure: str) -> inspect.Signature:
    """Return the signature of a constructor with every setting by name, as `help` shows it."""
    own, other = inspect.signature(kind.__init__), {"structure": structure}
    known = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=other.get(f.name, f.default)
        )
        for f in dataclasses.fields(KFACSettings)
    ]
    return own.replace(parameters=[*known[1:], *fields])


for _kind, _structure in ((KFAC, "kronecker"), (EKFAC, "ekfac")):
    _kind.__signature__ = _signature(_kind, _structure)  # pyright: ignore[reportAttributeAccessIssue]


def _make(
    model: nn.Module, likelihood: Any, config: KFACSettings, generator: torch.Generator | None
) -> KFAC:
    return KFAC(model, likelihood, **settings_of(config), generator=generator)


def _make_ekfac(
    model: nn.Module, likelihood: Any, config: KFACSettings, generator: torch.Generator | None
) -> KFAC:
    return EKFAC(
        model, likelihood, generator=generator, **{**settings_of(config), "structure": "ekfac"}
    )


ENTRIES = (
    OptimizerEntry(
        name="kfac", config=KFACSettings, make=_make, space=SPACE, color="#be1e56"
    ),
    OptimizerEntry(
        name="ekfac", config=KFACSettings, make=_make_ekfac, space=SPACE,
        color="#be1e56", dash="dash",
    ),
)  # fmt: skip
