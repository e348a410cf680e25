"""(C + s I)⁻¹ of positive semi-definite matrices, several ways, none of which fails by exception.

- "cholesky": K³/2 multiplications, up the ladder of `kobai.linalg.cholesky`.
- "eigh": ten times that; negative eigenvalues, which are rounding, count as zero, so that the
  inverse is positive definite whatever the matrix was.
- "newton-schulz": X ← X(2I − CX), products of matrices only. From a multiple of the identity it
  takes about log₂ κ + 4 rounds of 2K³ for the condition number κ, from the inverse of a matrix
  nearby a few. It is checked by ‖I − CX‖, and what does not pass is done by Cholesky, with a status
  that says so.

Source: Schulz 1933, Iterative Berechnung der reziproken Matrix; Higham 2008, Functions of Matrices
(§5.3, §7.3: convergence and stability).
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kobai.linalg import cholesky, eigh

InverseMethod = Literal["cholesky", "eigh", "newton-schulz"]

METHODS: tuple[InverseMethod, ...] = ("cholesky", "eigh", "newton-schulz")

REPLACED = 4
"""Added to the status of a matrix that Newton-Schulz left to Cholesky."""

_STATUS = {"ok": 0, "jittered": 2, "indefinite": 3, "not-converged": 3, "non-finite": 3}

_MOST_ROUNDS = 60


def shifted_inverse(
    matrices: Float[Tensor, "S n n"],
    shifts: Float[Tensor, " S"],
    method: InverseMethod = "cholesky",
    start: Float[Tensor, "S n n"] | None = None,
) -> tuple[Float[Tensor, "S n n"], Int[Tensor, " S"]]:
    """(C + s I)⁻¹ of positive semi-definite matrices, and how it was come by.

    Args:
        matrices: C.
        shifts: s > 0.
        method: See above.
        start: Where Newton-Schulz begins, if that is near enough: ‖I − CX‖ < 1 in Frobenius norm.

    Returns:
        The inverses and a status each: 0 in its own precision, 1 in float64, 2 with its damping
        raised, 3 not at all (not finite; the inverse is then zero); `REPLACED` more where
        Newton-Schulz did not reach ‖I − CX‖ ≤ √ε, ε the rounding unit, and Cholesky was taken.
    """
    if method == "newton-schulz":
        return _by_iteration(matrices, shifts, start)
    return (
        _by_eigenvectors(matrices, shifts) if method == "eigh" else _by_cholesky(matrices, shifts)
    )


def unread_inverse(
    matrices: Float[Tensor, "S n n"], shifts: Float[Tensor, " S"]
) -> tuple[Float[Tensor, "S n n"], Bool[Tensor, " S"]]:
    """The first attempt of "cholesky" and whether it was good, none of which the host waits for."""
    size = matrices.shape[-1]
    unit = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    shifted = matrices + shifts.view(-1, 1, 1) * unit
    triangle, info = torch.linalg.cholesky_ex(shifted)
    inverse = torch.cholesky_inverse(triangle)
    pivots = triangle.diagonal(dim1=1, dim2=2).square()
    least = size * torch.finfo(matrices.dtype).eps * shifted.diagonal(dim1=1, dim2=2)
    finite = torch.isfinite(inverse.diagonal(dim1=1, dim2=2).sum(1))
    return inverse, (info == 0) & (pivots > least).all(1) & finite


def _by_cholesky(matrices: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    factor = cholesky(matrices, damping=shifts, precision=matrices.dtype)
    # Symmetric, and written column by column: turned, it lies in memory as copies want it.
    inverse = torch.cholesky_inverse(factor.triangle).mT.to(matrices.dtype)
    return _checked(inverse, factor.statuses, factor.triangle.dtype != matrices.dtype)


def _by_eigenvectors(matrices: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    found = eigh(matrices, precision=matrices.dtype)
    values = found.values.clamp(min=0) + shifts.to(found.values.dtype).unsqueeze(1)
    inverse = ((found.vectors / values.unsqueeze(1)) @ found.vectors.mT).to(matrices.dtype)
    return _checked(inverse, found.statuses, found.values.dtype != matrices.dtype)


def _checked(inverse: Tensor, statuses: tuple[str, ...], in_float64: bool) -> tuple[Tensor, Tensor]:
    """Zero what failed; `inverse` is changed."""
    status = [max(_STATUS[name], int(in_float64)) for name in statuses]
    found = torch.tensor(status, device=inverse.device)
    # A matrix on the brink can have an inverse that overflows, on its diagonal if anywhere.
    failed = (found == 3) | ~torch.isfinite(inverse.diagonal(dim1=1, dim2=2).sum(1))
    if bool(failed.any()):
        inverse[failed] = 0.0
    return inverse, torch.where(failed, 3, found)


def _by_iteration(matrices: Tensor, shifts: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
    size = matrices.shape[-1]
    unit = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    shifted = matrices + shifts.view(-1, 1, 1) * unit
    # All eigenvalues lie between the shift and the largest sum of a row.
    largest = shifted.abs().sum(2).amax(1)
    inverse = unit * (2 / (largest + shifts)).view(-1, 1, 1)
    if start is not None:
        near = (unit - shifted @ start).square().sum((1, 2)) < 1
        inverse = torch.where(near.view(-1, 1, 1), start, inverse)
    least = torch.finfo(matrices.dtype).eps ** 0.5
    before = torch.full_like(largest, torch.inf)
    reached = torch.zeros_like(largest, dtype=torch.bool)
    for _ in range(_MOST_ROUNDS):
        rest = unit - shifted @ inverse
        now = rest.square().sum((1, 2)).sqrt()
        # From ½ on the norm is squared by each round, until it is rounding.
        reached = now <= least
        ended = (before < 0.5) & (now > 0.5 * before) | ~torch.isfinite(now)
        if bool(ended.all()):
            break
        inverse = torch.baddbmm(inverse, inverse, rest)
        before = now
    status = torch.zeros_like(shifts, dtype=torch.int64)
    left = (~reached).nonzero().squeeze(1)
    if len(left):
        inverse[left], codes = _by_cholesky(matrices[left], shifts[left])
        status[left] = codes + REPLACED
    return inverse, status
