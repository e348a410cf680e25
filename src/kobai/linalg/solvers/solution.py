"""Results of iterative solvers, and checks of their arguments."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.operators.operator import LinearOperator

# From best to worst: the status of a block is its worst.
_ORDER = (
    "converged",
    "little-progress",
    "least-squares",
    "max-iterations",
    "negative-curvature",
    "indefinite-preconditioner",
    "non-finite",
)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Approximate solution of A x = b by an iteration, for one or several right-hand sides.

    Attributes:
        value: x, of the shape, dtype and device of b.
        statuses: one a right-hand side. "converged": relative residual <= tol.
            "little-progress": the quadratic model stopped improving (`conjugate_gradient` with
            ``progress``). "least-squares": A is singular, no exact solution exists, and x minimises
            the residual (`minres`). "max-iterations". "negative-curvature": a direction p with
            pᵀAp <= 0 was met; x is the last iterate before it. "indefinite-preconditioner".
            "non-finite".
        residual_norms: (iterations + 1, k) float64, CPU: Euclidean norms of b - A x as the
            recursion updates them, constant once a column is finished.
        iterations: steps made by the slowest column.
        num_products: products with A, over all columns.
        iterates: the iterates kept, oldest first, each shaped like ``value``; empty unless asked
            for.
        iterate_steps: the step of each kept iterate.
        model_values: (iterations + 1, k) ½ xᵀAx - bᵀx (`conjugate_gradient`), or None.
        directions: for each column with status "negative-curvature" the direction of unit length,
            zero otherwise; shaped like ``value``. None when no column has it.
    """

    value: Float[Tensor, "n *k"]
    statuses: tuple[str, ...]
    residual_norms: Float[Tensor, "steps columns"]
    iterations: int
    num_products: int
    iterates: tuple[Float[Tensor, "n *k"], ...] = ()
    iterate_steps: tuple[int, ...] = ()
    model_values: Float[Tensor, "steps columns"] | None = None
    directions: Float[Tensor, "n *k"] | None = None

    @property
    def status(self) -> str:
        """The worst of the statuses."""
        return max(self.statuses, key=_ORDER.index, default="converged")


def check_system(
    operator: LinearOperator,
    b: Tensor,
    preconditioner: LinearOperator | None,
    start: Tensor | None,
    tol: float,
    max_iterations: int,
) -> None:
    """Raise for a system that cannot be solved as stated.

    Raises:
        ValueError: operator not declared symmetric, shapes that do not fit, tol or max_iterations
            out of range.
        TypeError: dtypes that differ.
    """
    if not operator.symmetric:
        raise ValueError(f"the operator must be declared symmetric; got {operator!r}")
    size = operator.shape[0]
    for name, tensor in (("b", b), ("start", start)):
        if tensor is None:
            continue
        if tensor.ndim not in (1, 2) or tensor.shape[0] != size:
            raise ValueError(f"{name} is ({size},) or ({size}, k); got {tuple(tensor.shape)}")
        if tensor.dtype != operator.dtype:
            raise TypeError(f"{name} is {tensor.dtype}, the operator works in {operator.dtype}")
    if start is not None and start.shape != b.shape:
        raise ValueError(f"start {tuple(start.shape)} has not the shape of b {tuple(b.shape)}")
    if preconditioner is not None and preconditioner.shape != operator.shape:
        raise ValueError(
            f"the preconditioner has shape {preconditioner.shape}, the operator {operator.shape}"
        )
    if not (math.isfinite(tol) and tol >= 0):
        raise ValueError(f"tol is a relative residual, at least 0; got {tol}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations is at least 1; got {max_iterations}")


def dots(a: Float[Tensor, "n k"], b: Float[Tensor, "n k"]) -> Float[Tensor, "k"]:
    """Inner products of corresponding columns, as float64."""
    return (a * b).sum(dim=0).to(torch.float64)


def history(rows: Sequence[Tensor]) -> Float[Tensor, "steps columns"]:
    """Rows of per-column numbers gathered on the CPU in float64."""
    return torch.stack(list(rows)).to(device="cpu", dtype=torch.float64)
