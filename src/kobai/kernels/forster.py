"""Inputs in radial-isotropic position: equal lengths and a spherical second moment."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.factor import eigh


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RadialIsotropic:
    """Transformed inputs and the map behind them.

    Attributes:
        inputs: (N, D) rows T x/‖T x‖ · √D: each of squared length D, with Xᵀ X = N I.
        matrix: T, (D, D); new inputs are transformed by `transform`.
        error: Largest entry of |Xᵀ X / N − I|.
        iterations: Steps taken.
        status: "converged", or "max-iterations".
    """

    inputs: Float[Tensor, "N D"]
    matrix: Float[Tensor, "D D"]
    error: float
    iterations: int
    status: str

    def transform(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """The same map for other inputs."""
        return _on_sphere(x.double() @ self.matrix.T).to(x.dtype)


def radial_isotropic(
    x: Float[Tensor, "N D"], *, tolerance: float = 1e-12, max_iterations: int = 1000
) -> RadialIsotropic:
    """Forster's transform: a linear map after which the normalised inputs have Xᵀ X = N I.

    Alternates scaling rows to equal length with whitening. All examples then have the same
    leverage, so that K-FAC's first layer is isotropic with more examples than inputs: K̄_1 = M_0 I
    in a layer without bias. Source: Forster 2002, A linear lower bound on the unbounded error
    probabilistic communication complexity; its use for K-FAC in Karakida and Osawa 2020
    (2010.00879).

    Args:
        x: Inputs in general position (no D of them dependent), N > D or N = D.
        tolerance: On the largest entry of |Xᵀ X / N − I|.
        max_iterations: Steps at most; convergence is linear.

    Returns:
        The inputs in float64 arithmetic, in their dtype.

    Raises:
        ValueError: If there are fewer examples than coordinates, an input is zero, or the inputs
            do not span the space.
    """
    if x.ndim != 2 or x.shape[0] < x.shape[1]:
        raise ValueError(
            f"x must be (N, D) with N ≥ D, got shape {tuple(x.shape)}; with fewer examples than "
            "coordinates they already fit every output"
        )
    if bool((x == 0).all(1).any()):
        raise ValueError("an input of zeros has no direction; remove it")
    count, size = x.shape
    rows = x.double()
    matrix = torch.eye(size, dtype=torch.float64, device=x.device)
    unit = torch.eye(size, dtype=torch.float64, device=x.device)
    points = _on_sphere(rows)
    error, steps = float("inf"), 0
    for steps in range(max_iterations + 1):
        moment = points.T @ points / count
        error = float((moment - unit).abs().max())
        if error <= tolerance or steps == max_iterations:
            break
        spectral = eigh(moment)
        least, largest = float(spectral.values[0]), float(spectral.values[-1])
        if spectral.status != "ok" or not least > size * 1e-15 * largest:
            raise ValueError("the inputs do not span the space; remove dependent coordinates")
        root = (spectral.vectors / spectral.values.sqrt()) @ spectral.vectors.T
        matrix = root @ matrix
        # Only the direction of T counts; its size would drift.
        matrix = matrix / torch.linalg.matrix_norm(matrix) * size**0.5
        points = _on_sphere(rows @ matrix.T)
    return RadialIsotropic(
        inputs=points.to(x.dtype), matrix=matrix, error=error, iterations=steps,
        status="converged" if error <= tolerance else "max-iterations",
    )  # fmt: skip


def _on_sphere(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True) * rows.shape[1] ** 0.5
