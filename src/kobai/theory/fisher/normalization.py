"""The effect of normalised outputs on the Fisher matrix's outliers.

Subtracting the mean over examples multiplies every output's block of J Jᵀ by G = I − 11ᵀ/N on both
sides and removes the all-ones outliers exactly; dividing without centring, or normalising each
example for itself, does not. Source: Karakida, Akaho and Amari, 1906.02926.
"""

import numpy as np

from kobai.theory.fisher.outputs import MOST_ROWS, decomposed, dual_kernel, output_draws
from kobai.theory.fisher.statistics import FisherStatistics, separated
from kobai.theory.kernels import InfiniteWidthKernels
from kobai.theory.mean_field import OrderParameters

_EMPTY = np.empty(0)


def normalized_statistics(
    p: OrderParameters,
    examples: int,
    kernel: InfiniteWidthKernels | None,
    normalization: str,
    *,
    outputs: np.ndarray | None,
    generator: np.random.Generator | None,
) -> FisherStatistics:
    """Statistics with normalised outputs, squared loss; see `fisher_statistics`."""
    if normalization == "layer":
        return _per_example(p, examples, kernel, outputs, generator)
    if normalization == "scale":
        return _scaled(p, examples, kernel, outputs)
    if kernel is None:
        return _centred(p, examples, normalization)
    return _centred_on_inputs(p, kernel, normalization, outputs, generator)


def _centred(p: OrderParameters, n: int, normalization: str) -> FisherStatistics:
    """Mean subtraction and BatchNorm in the mean-field form: trace and bounds."""
    c, gap = p.outputs, p.s1 - p.s2
    removed, scale = 1, 1.0
    notes = list(p.notes)
    if normalization == "batch":
        removed, scale = 2, float(p.variance[-1] - p.covariance[-1])
        notes.append(
            "scale and shift 1 and 0; if trained, they add 2 C parameters not counted here"
        )
    if scale <= 1e-12 * p.variance[-1]:
        return _record(
            p, n, normalization, status="not defined",
            notes=(*notes, "outputs do not differ between examples: their variance is 0"),
        )  # fmt: skip
    bulk = gap / n / scale
    count = c * (n - removed)
    notes.append(
        "λ_max is only bounded, between the bulk's mean and the root of its sum of squares, both "
        "to leading order in N/M (the upper bound was exceeded 1.2–1.6 times at N ≤ M, 3.4 times "
        "at N = 4M); it stays O(1) with N proportional to M, so η_c does not shrink with width"
    )
    return _record(
        p, n, normalization, trace=count * bulk, sum_of_squares=count * bulk**2, lower=bulk,
        upper=float(np.sqrt(max(count, 1)) * bulk), bulk_mean=bulk, rank=count,
        status="bounds only", notes=tuple(notes),
    )  # fmt: skip


def _centred_on_inputs(
    p: OrderParameters,
    kernel: InfiniteWidthKernels,
    normalization: str,
    outputs: np.ndarray | None,
    generator: np.random.Generator | None,
) -> FisherStatistics:
    """The same from the kernel on given inputs: a spectrum instead of bounds."""
    n, c = len(kernel.ntk), p.outputs
    theta = kernel.ntk / n
    centre = np.eye(n) - 1.0 / n
    notes = ["eigenvalues of the normalised infinite-width kernel on these inputs"]
    if normalization == "mean":
        values = np.repeat(np.linalg.eigvalsh(centre @ theta @ centre), c)
        count = c * (n - 1)
    else:
        found = output_draws(p, n, kernel, outputs, generator)
        if not found:
            return _record(
                p, n, normalization, status="outputs needed",
                notes=("BatchNorm divides by the realised spread: pass outputs or a generator",),
            )  # fmt: skip
        parts = []
        for f in found:
            spread = f.std(axis=0)
            if np.any(spread <= 0):
                return _record(
                    p, n, normalization, status="not defined",
                    notes=("an output is constant over the examples: its spread is 0",),
                )  # fmt: skip
            standard = (f - f.mean(axis=0)) / spread
            blocks = []
            for k in range(c):
                project = centre - np.outer(standard[:, k], standard[:, k]) / n
                blocks.append(np.linalg.eigvalsh(project @ theta @ project) / spread[k] ** 2)
            parts.append(np.sort(np.concatenate(blocks)))
        values, count = np.mean(parts, axis=0), c * (n - 2)
    values = np.maximum(values[-count:], 0.0) if count > 0 else _EMPTY
    top = float(values[-1]) if count > 0 else 0.0
    return _record(
        p, n, normalization, trace=values.sum(), sum_of_squares=(values**2).sum(), largest=top,
        lower=top, upper=top, bulk_mean=float(values.mean()) if count > 0 else 0.0,
        rank=max(count, 0), eigenvalues=values, status="ok", notes=tuple(notes),
    )  # fmt: skip


def _scaled(
    p: OrderParameters, n: int, kernel: InfiniteWidthKernels | None, outputs: np.ndarray | None
) -> FisherStatistics:
    """Division by the standard deviation: the all-ones direction passes untouched."""
    if kernel is not None or outputs is not None:
        raise ValueError("normalization='scale' is predicted from numbers only, not from data")
    scale = float(p.variance[-1] - p.covariance[-1])
    if scale <= 1e-12 * p.variance[-1] or not separated(p.s1, p.s2, n):
        return _record(
            p, n, "scale", status="no separated outliers",
            notes=(*p.notes, "λ_max refused: the formula is that of the outliers"),
        )  # fmt: skip
    top = ((n - 1) * p.s2 + p.s1) / n / scale
    return _record(
        p, n, "scale", largest=top, lower=top, upper=top, outliers=p.outputs,
        bulk_mean=(p.s1 - p.s2) / n / scale, status="ok",
        notes=(
            *p.notes,
            "without centring the C outliers stay, divided by the outputs' variance over examples: "
            "λ_max remains O(M); in one network each is divided by its own output's spread",
        ),
    )  # fmt: skip


def _per_example(
    p: OrderParameters,
    n: int,
    kernel: InfiniteWidthKernels | None,
    outputs: np.ndarray | None,
    generator: np.random.Generator | None,
) -> FisherStatistics:
    """LayerNorm on the outputs: P_n K(n, m) P_m / N with the realised outputs."""
    c = p.outputs
    found = output_draws(p, n, kernel, outputs, generator)
    notes = [*p.notes, "no mean over examples is removed: λ_max stays O(M)"]
    if c < 10:
        notes.append(f"C = {c} < 10: 1/spread over so few outputs has heavy tails")
    if not found or c * n > MOST_ROWS or c < 3:
        why = (
            "LayerNorm depends on the realised outputs: pass outputs or a generator"
            if not found
            else f"at most {MOST_ROWS} rows and at least 3 outputs, got C N = {c * n}, C = {c}"
        )
        status = "not defined" if found else "outputs needed"
        return _record(p, n, "layer", status=status, notes=(*notes, why))
    theta = dual_kernel(p, n, kernel) / n
    parts = []
    chosen = decomposed(found)
    if outputs is None:
        notes.append(f"averaged over {len(chosen)} draws of the outputs")
    for f in chosen:
        spread = f.std(axis=1, keepdims=True)
        standard = (f - f.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-300)
        project = np.eye(c) - 1 / c - np.einsum("ni,nj->nij", standard, standard) / c
        project = project / np.maximum(spread, 1e-300)[:, :, None]
        matrix = np.einsum("nik,nm,mkj->nimj", project, theta, project, optimize=True)
        parts.append(np.linalg.eigvalsh(matrix.reshape(n * c, n * c)))
    values = np.maximum(np.mean(parts, axis=0)[-n * (c - 2) :], 0.0)
    top = float(values[-1])
    return _record(
        p, n, "layer", trace=values.sum(), sum_of_squares=float(np.mean(np.square(parts)) * n * c),
        largest=top, lower=top, upper=top, outliers=c - 2, bulk_mean=float("nan"),
        rank=n * (c - 2), eigenvalues=values, status="ok", notes=tuple(notes),
    )  # fmt: skip


def _record(
    p: OrderParameters,
    n: int,
    normalization: str,
    *,
    status: str,
    notes: tuple[str, ...],
    trace: float = np.nan,
    sum_of_squares: float = np.nan,
    largest: float = np.nan,
    lower: float = np.nan,
    upper: float = np.nan,
    outliers: int = 0,
    bulk_mean: float = np.nan,
    rank: int | None = None,
    eigenvalues: np.ndarray = _EMPTY,
) -> FisherStatistics:
    """A record in which what is not given was refused."""
    return FisherStatistics(
        loss="gaussian", normalization=normalization, examples=n, outputs=p.outputs,
        parameters=p.parameters, trace=trace, sum_of_squares=sum_of_squares, largest=largest,
        lower=lower, upper=upper, outliers=outliers, bulk_mean=bulk_mean,
        rank=min(p.parameters, p.outputs * n if rank is None else rank), eigenvalues=eigenvalues,
        layer_trace=_EMPTY, layer_largest=_EMPTY, status=status, notes=notes,
    )  # fmt: skip
