"""Fisher statistics with softmax outputs: C − 1 outliers of different sizes.

F = (1/N) Σ J_nᵀ Q_n J_n with Q = diag g − g gᵀ = B Bᵀ, B = diag(√g)(I − √g √gᵀ); its non-zero
eigenvalues are those of the CN × CN matrix B_nᵀ K(n, m) B_m / N. Source: 1910.05992.
"""

import numpy as np
from jaxtyping import Float
from scipy import special

from kobai.theory.fisher.outputs import MOST_ROWS, decomposed, dual_kernel, output_draws
from kobai.theory.fisher.statistics import FisherStatistics
from kobai.theory.kernels import InfiniteWidthKernels
from kobai.theory.mean_field import OrderParameters

_EMPTY = np.empty(0)


def softmax_averages(outputs: Float[np.ndarray, "N C"]) -> tuple[float, float, float]:
    """Averages over examples that the softmax statistics are made of.

    Args:
        outputs: (N, C) logits, N ≥ 2.

    Returns:
        b₁ = mean of 1 − Σ g², b₂ = mean of tr Q_n Q_m over n ≠ m, b₃ = mean of tr Q_n².

    Raises:
        ValueError: If there are fewer than two examples.
    """
    if len(outputs) < 2:
        raise ValueError(f"pairs need at least two examples, got {len(outputs)}")
    metric = _metric(special.softmax(outputs, axis=1))
    n = len(outputs)
    own = float(np.einsum("nij,nij->", metric, metric))
    total = metric.sum(axis=0)
    trace = float(np.einsum("nii->", metric)) / n
    return trace, (float((total**2).sum()) - own) / (n * (n - 1)), own / n


def softmax_statistics(
    p: OrderParameters,
    examples: int,
    kernel: InfiniteWidthKernels | None,
    *,
    outputs: np.ndarray | None,
    generator: np.random.Generator | None,
) -> FisherStatistics:
    """Statistics for realised outputs, or averaged over draws; see `fisher_statistics`."""
    n, c = examples, p.outputs
    found = output_draws(p, n, kernel, outputs, generator)
    theta = dual_kernel(p, n, kernel)
    notes = [*p.notes]
    nan = float("nan")
    trace = squares = largest = nan
    values = _EMPTY
    status = "ok"
    if not found:
        status = "outputs needed"
        notes.append(
            "softmax statistics depend on the outputs, which do not average out in one network: "
            "pass outputs, or a generator for the average over networks"
        )
    else:
        parts = [_moments(theta, logits) for logits in found]
        trace, squares = (float(x) for x in np.mean(parts, axis=0))
        if c * n <= MOST_ROWS:
            values = np.mean([_spectrum(theta, logits) for logits in decomposed(found)], axis=0)
            largest = float(values[-1])
        else:
            status = "bounds only"
            notes.append(
                f"the full prediction has C N = {c * n} rows, more than {MOST_ROWS}: only the "
                "outliers' leading order S₂ λ_max(mean Q), a lower bound"
            )
        if outputs is None:
            used = len(decomposed(found))
            notes.append(
                f"averaged over {len(found)} draws of the outputs, eigenvalues over {used}"
            )
    lower = largest
    if status == "bounds only":
        mean = [_metric(special.softmax(f, axis=1)).mean(axis=0) for f in found]
        top = np.mean([np.linalg.eigvalsh(q)[-1] for q in mean])
        lower = float(p.s2 * top) if kernel is None else nan
    count = (c - 1) * n
    bulk = nan
    if values.size and count > c - 1:
        bulk = float((trace - values[len(values) - (c - 1) :].sum()) / (count - (c - 1)))
    return FisherStatistics(
        loss="categorical", normalization="none", examples=n, outputs=c, parameters=p.parameters,
        trace=trace, sum_of_squares=squares, largest=largest, lower=lower,
        upper=largest, outliers=c - 1 if found else 0, bulk_mean=bulk,
        rank=min(p.parameters, count), eigenvalues=values[-count:] if count else _EMPTY,
        layer_trace=_EMPTY, layer_largest=_EMPTY, status=status, notes=tuple(notes),
    )  # fmt: skip


def _metric(g: np.ndarray) -> np.ndarray:
    """Q_n, (N, C, C)."""
    return np.einsum("ni,ij->nij", g, np.eye(g.shape[1])) - np.einsum("ni,nj->nij", g, g)


def _moments(theta: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """tr F and tr F² with K(n, m) = θ_nm I."""
    metric = _metric(special.softmax(logits, axis=1))
    n = len(logits)
    flat = metric.reshape(n, -1)
    trace = float(np.diag(theta) @ np.einsum("nii->n", metric)) / n
    return trace, float(np.sum(theta**2 * (flat @ flat.T))) / n**2


def _spectrum(theta: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """All CN eigenvalues of B_nᵀ θ_nm B_m / N, ascending."""
    n, c = logits.shape
    root = np.sqrt(special.softmax(logits, axis=1))
    # B = diag(√g)(I − √g √gᵀ): a factor of Q in closed form.
    factor = root[:, :, None] * (np.eye(c) - root[:, :, None] * root[:, None, :])
    matrix = np.einsum("nki,nm,mkj->nimj", factor, theta / n, factor, optimize=True)
    return np.linalg.eigvalsh(matrix.reshape(n * c, n * c))
