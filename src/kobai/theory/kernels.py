"""Kernels of infinitely wide networks: the Gaussian process at initialisation, and the NTK.

A linear layer maps a feature kernel V to K = σ_w² V + σ_b² and a tangent kernel T to
σ_w² T + (its own parameters' share); an activation maps K to V, and the tangent kernel Θ to D Θ.
Sources: Neal 1996; Lee et al. 2018 (1711.00165); Jacot, Gabriel and Hongler 2018 (1806.07572);
Karakida et al. 1910.05992 for the standard parameterisation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from kobai.results import register
from kobai.theory.layers import Dense, Layer, Nonlinearity, Residual, describe

_BLOCK = 1 << 15  # entries in work at a time; five such arrays stay in a second-level cache


@register
@dataclass(frozen=True, kw_only=True, eq=False)
class InfiniteWidthKernels:
    """Kernels between N₁ and N₂ inputs, for one output; times I_C for C outputs.

    Attributes:
        nngp: (N₁, N₂) covariance of the outputs over random initialisations.
        ntk: (N₁, N₂) tangent kernel, Σ over parameters of ∂f(x₁) ∂f(x₂).
        variance1: (N₁,) output variances at the first inputs.
        variance2: (N₂,) at the second.
        parameterization: ``standard`` or ``ntk``.
        accuracy: Bound on the error of one activation's averages.
        status: ``ok``, or ``inaccurate`` where that bound exceeds 1e-6.
        notes: Domain of validity.
    """

    nngp: Float[np.ndarray, "N1 N2"]
    ntk: Float[np.ndarray, "N1 N2"]
    variance1: Float[np.ndarray, " N1"]
    variance2: Float[np.ndarray, " N2"]
    parameterization: str
    accuracy: float
    status: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Not copied: these are the largest arrays of the package.
        for name in ("nngp", "ntk", "variance1", "variance2"):
            getattr(self, name).setflags(write=False)


def infinite_width_kernels(
    model: Any,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    parameterization: Literal["standard", "ntk"] = "standard",
    weight_variance: float | int | None = None,
    bias_variance: float | int | None = None,
) -> InfiniteWidthKernels:
    """NNGP and NTK of a fully connected network in the limit of wide hidden layers.

    A network of width M differs from the NTK by O(1/√M), relu more than smooth activations; the
    mean over networks by O(1/M). In the standard parameterisation the kernel grows with the
    widths, which are therefore read; inputs count as N(0, …/M_0) weights see them, x₁·x₂/M_0.

    Args:
        model: A `WideNetwork`; a sequence of `Dense`, `Nonlinearity`, `Normalize`, `Residual`; or
            an ``nn.Sequential`` of linear layers and activations, whose values are not read.
        x1: (N₁, …) inputs, flattened to (N₁, M_0).
        x2: (N₂, …) others; default: the same, and half the work.
        parameterization: ``standard`` (u = W h + b, what PyTorch trains), or ``ntk``
            (u = σ_w W h/√M + σ_b b with standard normal W, b).
        weight_variance: σ_w² of a module's layers; default 1/3, as ``nn.Linear`` draws.
        bias_variance: σ_b²; default 1/(3 fan_in), as ``nn.Linear`` draws.

    Returns:
        Both kernels. Cost: one Gram matrix of the inputs, then per layer and pair of inputs a few
        operations in closed form (relu: one root, one arctangent), about 70 q multiplications for
        tanh at variance q.

    Raises:
        ValueError: If shapes do not fit, or numbers are not finite.
        TypeError: If a module is of a kind that has no rule here.
    """
    if parameterization not in ("standard", "ntk"):
        raise ValueError(f"parameterization is 'standard' or 'ntk', got {parameterization!r}")
    layers = describe(model, weight_variance, bias_variance)
    first = _inputs(x1, layers, "x1")
    same = x2 is None
    second = first if x2 is None else _inputs(x2, layers, "x2")
    dimension = first.shape[1]
    if second.shape[1] != dimension:
        raise ValueError(f"x1 has {dimension} coordinates, x2 {second.shape[1]}")
    # BLAS computes half of X Xᵀ when both factors are one array.
    gram = first @ first.T if same else first @ second.T
    gram /= dimension
    if same:
        square1 = square2 = gram.diagonal().copy()
    else:
        square1 = np.einsum("nd,nd->n", first, first) / dimension
        square2 = np.einsum("nd,nd->n", second, second) / dimension
    record1: list[np.ndarray] = []
    variance1 = _variances(layers, square1, record1)
    record2, variance2 = record1, variance1
    if not same:
        record2 = []
        variance2 = _variances(layers, square2, record2)
    n1, n2 = gram.shape
    tangent = np.empty((n1, n2))
    step = max(1, (_BLOCK << 4 if _shares_tables(layers) else _BLOCK) // max(n2, 1))
    for start in range(0, n1, step):
        rows = slice(start, min(start + step, n1))
        columns = slice(start if same else 0, n2)
        block = gram[rows, columns].copy()
        pairs = iter(
            [(a[rows, None], b[None, columns]) for a, b in zip(record1, record2, strict=True)]
        )
        value, theta = _propagate(layers, block, None, pairs, parameterization)
        if same:
            # Some closed forms treat u and v differently to rounding; kernels are symmetric.
            square = slice(0, rows.stop - start)
            for part in (value, theta):
                part[:, square] = (part[:, square] + part[:, square].T) / 2
        gram[rows, columns] = value
        tangent[rows, columns] = theta
        if same:
            gram[columns, rows] = value.T
            tangent[columns, rows] = theta.T
    accuracy = _accuracy(layers, record1, record2)
    notes = ["hidden widths large; one network scatters by O(1/√M) around these kernels"]
    if accuracy > 1e-6:
        notes.append(f"an activation's series is only good to {accuracy:.1g} at these variances")
    if _has_slope_singularity(layers):
        notes.append(
            "relu: D has an infinite slope where two inputs are parallel; do not differentiate "
            "through these kernels there"
        )
    return InfiniteWidthKernels(
        nngp=gram, ntk=tangent, variance1=variance1, variance2=variance2,
        parameterization=parameterization, accuracy=accuracy,
        status="ok" if accuracy <= 1e-6 else "inaccurate", notes=tuple(notes),
    )  # fmt: skip


def _inputs(x: ArrayLike, layers: Sequence[Layer], name: str) -> np.ndarray:
    detach = getattr(x, "detach", None)  # a torch tensor, perhaps with a graph or on a device
    array = np.asarray(x if detach is None else detach().cpu(), dtype=np.float64)
    if array.ndim < 2 or array.shape[0] == 0:
        raise ValueError(f"{name} is (N, …) with N ≥ 1, got shape {array.shape}")
    array = array.reshape(len(array), -1)
    dense = next(_dense_layers(layers))
    if array.shape[1] != dense.fan_in:
        raise ValueError(
            f"{name} has {array.shape[1]} coordinates, the first layer takes {dense.fan_in}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return array


def _dense_layers(layers: Sequence[Layer]) -> Iterator[Dense]:
    for layer in layers:
        if isinstance(layer, Dense):
            yield layer
        elif isinstance(layer, Residual):
            yield from _dense_layers(layer.branch)


def _activations(layers: Sequence[Layer]) -> Iterator[Nonlinearity]:
    for layer in layers:
        if isinstance(layer, Nonlinearity):
            yield layer
        elif isinstance(layer, Residual):
            yield from _activations(layer.branch)


def _shares_tables(layers: Sequence[Layer]) -> bool:
    return any(layer.phi.shares_tables for layer in _activations(layers))


def _has_slope_singularity(layers: Sequence[Layer]) -> bool:
    return any(layer.phi.kinks for layer in _activations(layers))


def _variances(layers: Sequence[Layer], q: np.ndarray, record: list[np.ndarray]) -> np.ndarray:
    """Propagate variances; record them before every nonlinearity and normalisation, in order."""
    for layer in layers:
        if isinstance(layer, Dense):
            q = layer.weight_variance * q + layer.bias_variance
        elif isinstance(layer, Residual):
            q = q + _variances(layer.branch, q, record)
        else:
            record.append(q)
            if isinstance(layer, Nonlinearity):
                q = layer.phi.diagonal(q)[0]
            else:
                if np.any(q <= 0):
                    raise ValueError("layer normalisation of an input with variance 0")
                q = np.ones_like(q)
    return q


def _propagate(
    layers: Sequence[Layer],
    c: np.ndarray,
    theta: np.ndarray | None,
    pairs: Iterator[tuple[np.ndarray, np.ndarray]],
    parameterization: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Kernels of a block after the layers; c and theta are written over. None stands for zeros."""
    for layer in layers:
        if isinstance(layer, Dense):
            if theta is None:
                theta = np.zeros_like(c)
            theta *= layer.weight_variance
            if parameterization == "standard":
                theta += layer.fan_in * c
                theta += 1.0 if layer.bias else 0.0
                c *= layer.weight_variance
                c += layer.bias_variance
            else:
                c *= layer.weight_variance
                c += layer.bias_variance
                theta += c
        elif isinstance(layer, Residual):
            branch = _propagate(
                layer.branch, c.copy(), None if theta is None else theta.copy(), pairs,
                parameterization,
            )  # fmt: skip
            c += branch[0]
            theta = branch[1] if theta is None else theta + branch[1]
        else:
            a, b = next(pairs)
            if isinstance(layer, Nonlinearity):
                c, slope = layer.phi.duals(a, c, b)
                if theta is not None:
                    theta *= slope
            else:
                scale = 1 / np.sqrt(a) / np.sqrt(b)
                c *= scale
                if theta is not None:
                    theta *= scale
    return c, np.zeros_like(c) if theta is None else theta


def _accuracy(
    layers: Sequence[Layer], record1: list[np.ndarray], record2: list[np.ndarray]
) -> float:
    """The worst bound over the activations; variances are summarised by their range."""
    worst = 0.0
    places: list[Nonlinearity | None] = []
    _places(layers, places)
    for layer, a, b in zip(places, record1, record2, strict=True):
        if layer is not None:
            both = np.concatenate([a, b])
            worst = max(worst, layer.phi.accuracy(np.array([both.min(), both.max()])))
    return worst


def _places(layers: Sequence[Layer], places: list[Nonlinearity | None]) -> None:
    """Say what each entry of a record belongs to."""
    for layer in layers:
        if isinstance(layer, Residual):
            _places(layer.branch, places)
        elif not isinstance(layer, Dense):
            places.append(layer if isinstance(layer, Nonlinearity) else None)
