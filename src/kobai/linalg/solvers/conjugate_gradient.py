"""Conjugate gradients: positive definite systems, many right-hand sides together."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.operators.operator import LinearOperator
from kobai.linalg.solvers.solution import Solution, check_system, dots, history

# Ratio between successive kept iterates, and the window of the progress test [Martens 2010, §4.4,
# §4.6].
_SPACING = 1.3
_WINDOW = 10


def conjugate_gradient(
    operator: LinearOperator,
    b: Float[Tensor, "n *k"],
    *,
    preconditioner: LinearOperator | None = None,
    start: Float[Tensor, "n *k"] | None = None,
    tol: float = 1e-6,
    progress: float = 0.0,
    max_iterations: int = 250,
    keep: Literal["none", "geometric", "all"] = "none",
) -> Solution:
    """Solve A x = b for symmetric positive definite A [Hestenes & Stiefel 1952].

    Columns of b run together, each with its own step sizes; finished columns are no longer
    multiplied. A column ends at the first of: relative residual ‖b - A x‖ <= tol ‖b‖; little
    progress; a direction of non-positive curvature (a status, with the direction); max_iterations.

    Cost: one product per column and step, and one more with ``start``; one preconditioner
    product per column and step.

    Args:
        operator: A, declared symmetric.
        b: (n,) or (n, k).
        preconditioner: symmetric positive definite approximation of A⁻¹, multiplied with.
        start: first iterate, shaped like b; default zero.
        tol: relative residual to reach.
        progress: stop when the model φ(x) = ½ xᵀAx - bᵀx improved by less than ``progress`` a step,
            relative to φ, over the last max(10, i / 10) steps [Martens 2010, §4.4]; 0 switches it
            off.
        max_iterations: most steps.
        keep: iterates to return: "geometric" those at steps ⌈1.3^j⌉ and the last (for
            backtracking along the path), "all" every one (n numbers each).

    Raises:
        ValueError: operator not declared symmetric, shapes that do not fit, a number out of range.
        TypeError: dtypes that differ.
    """
    check_system(operator, b, preconditioner, start, tol, max_iterations)
    if not progress >= 0:
        raise ValueError(f"progress is a relative improvement a step, at least 0; got {progress}")
    if keep not in ("none", "geometric", "all"):
        raise ValueError(f"keep is none, geometric or all; got {keep!r}")
    right = b.detach().reshape(b.shape[0], -1)
    run = _Run(
        operator, preconditioner, right, None if start is None else start.reshape(right.shape)
    )
    limits = tol * right.norm(dim=0).to(torch.float64)
    kept: list[tuple[int, Tensor]] = []
    next_kept = 1
    step = 0
    run.finish(~torch.isfinite(run.residual_norm), "non-finite")
    run.finish(run.residual_norm <= limits, "converged")
    while run.active.numel() and step < max_iterations:
        step += 1
        run.advance()
        run.finish(run.residual_norm <= limits, "converged")
        if progress > 0:
            run.finish(run.stalled(step, progress), "little-progress")
        if keep == "all" or (keep == "geometric" and step >= next_kept):
            kept.append((step, run.x.reshape(b.shape).clone()))
            next_kept = max(next_kept + 1, math.ceil(next_kept * _SPACING))
    if keep != "none" and (not kept or kept[-1][0] != step):
        kept.append((step, run.x.reshape(b.shape).clone()))
    return Solution(
        value=run.x.reshape(b.shape),
        statuses=tuple(run.statuses),
        residual_norms=history(run.norms),
        iterations=step,
        num_products=run.num_products,
        iterates=tuple(iterate for _, iterate in kept),
        iterate_steps=tuple(at for at, _ in kept),
        model_values=history(run.models),
        directions=run.directions.reshape(b.shape)
        if "negative-curvature" in run.statuses
        else None,
    )


class _Run:
    """The vectors of one run; ``active`` holds the columns still moving."""

    def __init__(
        self,
        operator: LinearOperator,
        preconditioner: LinearOperator | None,
        right: Tensor,
        start: Tensor | None,
    ) -> None:
        self.operator, self.preconditioner, self.right = operator, preconditioner, right
        count = right.shape[1]
        self.num_products = 0
        self.statuses = ["max-iterations"] * count
        self.active = torch.arange(count, device=right.device)
        # A zero right-hand side has the solution zero, whatever the start.
        nonzero = (right != 0).any(dim=0)
        if start is None or not bool(nonzero.any()):
            self.x = torch.zeros_like(right)
            self.residual = right.clone()
        else:
            self.x = start.detach() * nonzero
            self.residual = right - (operator @ self.x).detach()
            self.num_products += count
        self.directions = torch.zeros_like(right)
        self.search = torch.zeros_like(right)
        self.inner = torch.ones(count, dtype=torch.float64, device=right.device)
        self.fresh = True
        self.norms: list[Tensor] = []
        self.models: list[Tensor] = []
        self._record()

    @property
    def residual_norm(self) -> Tensor:
        """Norms of all columns' residuals after the latest step."""
        return self.norms[-1]

    def advance(self) -> None:
        """One step of every active column that can make one."""
        residual = self.residual[:, self.active]
        scaled = residual if self.preconditioner is None else self.preconditioner @ residual
        inner = dots(residual, scaled)
        good = inner > 0
        self._stop(~good, "indefinite-preconditioner", ~torch.isfinite(inner))
        scaled, inner = scaled[:, good], inner[good]
        ratio = torch.zeros_like(inner) if self.fresh else inner / self.inner[self.active]
        search = scaled + ratio.to(scaled.dtype) * self.search[:, self.active]
        self.fresh = False
        self.inner[self.active] = inner
        self.search[:, self.active] = search
        product = (self.operator @ search).detach()
        self.num_products += self.active.numel()
        curvature = dots(search, product)
        bent = ~(curvature > 0)
        seen = bent & torch.isfinite(curvature)
        self.directions[:, self.active[seen]] = search[:, seen] / search[:, seen].norm(dim=0)
        step = torch.where(bent, 0.0, inner / curvature).to(search.dtype)
        moved = torch.where(bent, 0.0, product)
        self.x[:, self.active] += step * search
        self.residual[:, self.active] -= step * moved
        self._stop(bent, "negative-curvature", ~torch.isfinite(curvature))
        self._record()
        self.finish(~torch.isfinite(self.residual_norm), "non-finite")

    def finish(self, which: Tensor, status: str) -> None:
        """Give the active ones among the columns marked a status, and stop them."""
        self._stop(which[self.active], status)

    def stalled(self, step: int, progress: float) -> Tensor:
        """The columns whose model improved by less than ``progress`` a step of late."""
        window = max(_WINDOW, math.ceil(step / 10))
        if step <= window:
            return torch.zeros_like(self.models[-1], dtype=torch.bool)
        now, then = self.models[-1], self.models[-1 - window]
        return (now < 0) & ((now - then) / now < window * progress)

    def _stop(self, marked: Tensor, status: str, non_finite: Tensor | None = None) -> None:
        if not bool(marked.any()):
            return
        for position in marked.nonzero().squeeze(1).tolist():
            broken = non_finite is not None and bool(non_finite[position])
            self.statuses[int(self.active[position])] = "non-finite" if broken else status
        self.active = self.active[~marked]

    def _record(self) -> None:
        """Append residual norms and model values of all columns."""
        self.norms.append(self.residual.norm(dim=0).to(torch.float64))
        self.models.append(-0.5 * dots(self.x, self.right + self.residual))
