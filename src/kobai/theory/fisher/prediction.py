"""Eigenvalue statistics of the Fisher matrix of a wide random network.

The dual J Jᵀ is close to I_C ⊗ [(S₁ − S₂) I_N + S₂ 11ᵀ]: C outliers of order M, C(N − 1)
eigenvalues in a bulk, zeros for the rest. Sources: Karakida, Akaho and Amari, 1806.01316
(statistics), 1906.02926 (normalisation), 1910.05992 (softmax, blocks, kernels).
"""

from typing import Literal

import numpy as np
from jaxtyping import Float

from kobai.theory.fisher.normalization import normalized_statistics
from kobai.theory.fisher.softmax import softmax_statistics
from kobai.theory.fisher.statistics import FisherStatistics, separated
from kobai.theory.kernels import infinite_width_kernels
from kobai.theory.mean_field import OrderParameters, order_parameters
from kobai.theory.network import WideNetwork

_EMPTY = np.empty(0)


def fisher_statistics(
    network: WideNetwork,
    examples: int | Float[np.ndarray, "N d"],
    *,
    loss: Literal["gaussian", "categorical"] = "gaussian",
    normalization: Literal["none", "mean", "batch", "scale", "layer"] = "none",
    outputs: Float[np.ndarray, "N C"] | None = None,
    generator: np.random.Generator | None = None,
    input_square: float | int = 1.0,
    input_product: float | int = 0.0,
) -> FisherStatistics:
    """Predict mean, second moment, outliers, bulk and critical rate of the Fisher matrix.

    Normalised for the loss that is the mean over examples of ½‖f − y‖² (``gaussian``) or of the
    cross-entropy (``categorical``), standard parameterisation, all weights and biases trained.
    A single network scatters by O(1/√M): compare the mean of its top C eigenvalues with `largest`.

    Valid at random initialisation, hidden widths M large against the depth and N; and with a
    number of examples for inputs of equal length that are nearly uncorrelated (or equally
    correlated). On the inputs themselves the eigenvalues of the infinite-width kernel are taken
    instead: real data, and networks without a common mean (odd φ, no biases, centred inputs), where
    the mean-field form has no outliers and λ_max is refused.

    Args:
        network: Widths, variances, activation, hidden normalisation.
        examples: N, or the (N, M_0) inputs themselves.
        loss: ``gaussian`` or ``categorical``.
        normalization: Normalisation of the outputs, with its gradient and no trained scale and
            shift: ``mean`` (minus the mean over examples), ``batch`` (BatchNorm), ``scale``
            (divided by the standard deviation over examples without centring), ``layer``
            (LayerNorm).
        outputs: (N, C) realised outputs, for categorical, layer, and batch on given inputs: their
            statistics do not average out in one network.
        generator: Where outputs are needed and not given, draws them from theory's own law and
            averages over 64 draws (eigenvalues over fewer if C N > 400): prediction for an
            average over networks.
        input_square: Mean square of an input coordinate, if examples is a number.
        input_product: Mean product of coordinates of two inputs, if examples is a number.

    Returns:
        The statistics. Cost: L Gaussian averages; O(N³) on given inputs; O((CN)³) for categorical
        and layer, on at most 4000 rows.

    Raises:
        ValueError: If shapes or numbers are out of range, or a combination has no theory.
    """
    if loss not in ("gaussian", "categorical"):
        raise ValueError(f"loss is 'gaussian' or 'categorical', got {loss!r}")
    if normalization not in ("none", "mean", "batch", "scale", "layer"):
        raise ValueError(
            f"normalization is none, mean, batch, scale or layer, got {normalization!r}"
        )
    if loss == "categorical" and normalization != "none":
        raise ValueError(
            "softmax with normalised outputs has no theory here; leave normalization at 'none'"
        )
    count = len(examples) if isinstance(examples, np.ndarray) else int(examples)
    if count < 2:
        raise ValueError(f"theory compares different examples: at least 2, got {count}")
    if outputs is not None and np.shape(outputs) != (count, network.outputs):
        raise ValueError(
            f"outputs have shape (N, C) = {(count, network.outputs)}, got {np.shape(outputs)}"
        )
    parameters = order_parameters(network, input_square=input_square, input_product=input_product)
    if network.hidden_normalization == "batch" and network.depth > 1:
        return _behind_batch_norm(parameters, count, loss, normalization)
    kernel = None
    if isinstance(examples, np.ndarray):
        if (input_square, input_product) != (1.0, 0.0):
            raise ValueError("input_square and input_product are for a number of examples only")
        kernel = infinite_width_kernels(network, examples)
    if not np.isfinite(parameters.s1):
        return _refused(parameters, count, loss, normalization, "a layer has zero variance")
    if loss == "categorical":
        return softmax_statistics(parameters, count, kernel, outputs=outputs, generator=generator)
    if normalization != "none":
        return normalized_statistics(
            parameters, count, kernel, normalization, outputs=outputs, generator=generator
        )
    if kernel is not None:
        return _on_inputs(parameters, kernel.ntk)
    return _mean_field(parameters, count)


def _mean_field(p: OrderParameters, n: int) -> FisherStatistics:
    c, s1, s2 = p.outputs, p.s1, p.s2
    apart = separated(s1, s2, n)
    layers = np.array(
        [
            ((n - 1) * pair + same) / n if separated(same, pair, n) else np.nan
            for same, pair in zip(p.sum_same, p.sum_pair, strict=True)
        ]
    )
    notes = list(p.notes)
    if not apart:
        notes.append(
            f"S₂ = {s2:.3g} is too small against S₁ = {s1:.3g} at N = {n} for outliers to separate "
            "from the bulk (κ₂ ≈ 0: odd activation, no biases, centred inputs): λ_max and η_c "
            "refused, the second moment is low by up to a third; pass the inputs themselves"
        )
    elif np.isnan(layers).any():
        unsafe = ", ".join(str(i + 1) for i in np.flatnonzero(np.isnan(layers)))
        notes.append(f"diagonal blocks of layers {unsafe} have no separated outliers")
    if c * n > p.parameters:
        notes.append(f"C N = {c * n} exceeds P = {p.parameters}: far from the wide limit")
    largest = ((n - 1) * s2 + s1) / n if apart else np.nan
    return FisherStatistics(
        loss="gaussian", normalization="none", examples=n, outputs=c, parameters=p.parameters,
        trace=c * s1, sum_of_squares=c * ((n - 1) / n * s2**2 + s1**2 / n), largest=largest,
        lower=largest, upper=largest, outliers=c if apart else 0, bulk_mean=(s1 - s2) / n,
        rank=min(p.parameters, c * n), eigenvalues=_EMPTY, layer_trace=c * p.sum_same,
        layer_largest=layers, status="ok" if apart else "no separated outliers", notes=tuple(notes),
    )  # fmt: skip


def _on_inputs(p: OrderParameters, ntk: np.ndarray) -> FisherStatistics:
    n, c = len(ntk), p.outputs
    values = np.linalg.eigvalsh(ntk / n)
    top, rest = float(values[-1]), values[:-1]
    apart = bool(top >= 3 * rest.mean() + 1e-300)
    return FisherStatistics(
        loss="gaussian", normalization="none", examples=n, outputs=c, parameters=p.parameters,
        trace=c * values.sum(), sum_of_squares=c * (values**2).sum(), largest=top, lower=top,
        upper=top, outliers=c if apart else 0, bulk_mean=float(rest.mean()),
        rank=min(p.parameters, c * n), eigenvalues=np.repeat(np.maximum(values, 0), c),
        layer_trace=_EMPTY, layer_largest=_EMPTY, status="ok",
        notes=(
            "eigenvalues of the infinite-width kernel on these inputs, each C-fold; without a "
            "separated outlier a finite network's top exceeds it by a factor that falls to 1 with "
            "N/M (about 1.3 at N/M = 1/6)",
        ),
    )  # fmt: skip


def _behind_batch_norm(
    p: OrderParameters, n: int, loss: str, normalization: str
) -> FisherStatistics:
    if loss != "gaussian" or normalization != "none":
        return _refused(p, n, loss, normalization, "hidden batch normalisation couples examples")
    # The output layer's own block is a lower bound, and nearly all of it.
    lower = float(((n - 1) * p.sum_pair[-1] + p.sum_same[-1]) / n)
    result = _refused(p, n, loss, normalization, "hidden batch normalisation couples examples")
    fields = {name: getattr(result, name) for name in result.__dataclass_fields__}
    notes = (
        *p.notes,
        "λ_max is at least that of the output layer's block, which is O(M) and nearly saturated: "
        "batch normalisation of hidden layers alone does not remove the outliers",
    )
    return FisherStatistics(
        **{**fields, "lower": lower, "status": "lower bound only", "notes": notes}
    )


def _refused(
    p: OrderParameters, n: int, loss: str, normalization: str, why: str
) -> FisherStatistics:
    nan = float("nan")
    return FisherStatistics(
        loss=loss, normalization=normalization, examples=n, outputs=p.outputs,
        parameters=p.parameters, trace=nan, sum_of_squares=nan, largest=nan, lower=nan, upper=nan,
        outliers=0, bulk_mean=nan, rank=min(p.parameters, p.outputs * n), eigenvalues=_EMPTY,
        layer_trace=_EMPTY, layer_largest=_EMPTY, status="not defined", notes=(*p.notes, why),
    )  # fmt: skip
