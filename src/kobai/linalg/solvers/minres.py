"""Minimal residuals: systems with a symmetric operator that may be indefinite or singular."""

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.operators.operator import LinearOperator
from kobai.linalg.solvers.solution import Solution, check_system, dots, history


def minres(
    operator: LinearOperator,
    b: Float[Tensor, "n *k"],
    *,
    preconditioner: LinearOperator | None = None,
    start: Float[Tensor, "n *k"] | None = None,
    tol: float = 1e-6,
    max_iterations: int = 250,
) -> Solution:
    """Solve A x = b for symmetric A of any signs [Paige & Saunders 1975].

    Each step minimises the residual over the Krylov space, in the norm of the preconditioner (the
    Euclidean norm without one). Columns of b run together; finished columns are no longer
    multiplied. A column ends at the first of: relative residual ‖b - A x‖ <= tol ‖b‖; ‖A r‖ <= tol
    ‖A‖ ‖r‖, which means that A is singular, b outside its range and x a least-squares solution;
    max_iterations.

    Cost: one product per column and step, and one more with ``start``; one preconditioner
    product per column and step. Holds eight vectors a column.

    Args:
        operator: A, declared symmetric.
        b: (n,) or (n, k).
        preconditioner: symmetric positive definite approximation of |A|⁻¹, multiplied with.
        start: first iterate, shaped like b; default zero.
        tol: relative residual to reach.
        max_iterations: most steps.

    Raises:
        ValueError: operator not declared symmetric, shapes that do not fit, a number out of range.
        TypeError: dtypes that differ.
    """
    check_system(operator, b, preconditioner, start, tol, max_iterations)
    right = b.detach().reshape(b.shape[0], -1)
    count = right.shape[1]
    x = torch.zeros_like(right) if start is None else start.detach().reshape(right.shape).clone()
    residual = right.clone() if start is None else right - (operator @ x).detach()
    spent = 0 if start is None else count
    limits = tol * right.norm(dim=0).to(torch.float64)
    statuses = ["max-iterations"] * count
    active = torch.arange(count, device=right.device)
    norms = [residual.norm(dim=0).to(torch.float64)]
    run = _Recurrence(operator, preconditioner, residual)

    def finish(**marks: Tensor) -> None:
        """Stop the active columns marked; where marks coincide the last one names the status."""
        nonlocal active
        done = torch.zeros_like(active, dtype=torch.bool)
        for status, marked in marks.items():
            done |= marked
            for position in active[marked].tolist():
                statuses[position] = status.replace("_", "-")
        if bool(done.any()):
            active = active[~done]
            run.select(~done)

    finish(
        indefinite_preconditioner=~(run.gamma > 0),
        converged=norms[0] <= limits,
        non_finite=~torch.isfinite(norms[0]),
    )
    step = 0
    # Below this the recurrences divide by rounding.
    floor = max(tol, 10 * torch.finfo(right.dtype).eps)
    while active.numel() and step < max_iterations:
        step += 1
        spent += active.numel()
        run.step(floor)
        x[:, active] += run.change
        norms.append(norms[-1].clone())
        norms[-1][active] = run.residual.norm(dim=0).to(torch.float64)
        finish(
            least_squares=run.flat,
            indefinite_preconditioner=run.indefinite,
            converged=(norms[-1][active] <= limits[active]) | (run.exhausted & ~run.flat),
            non_finite=run.broken,
        )
    return Solution(
        value=x.reshape(b.shape),
        statuses=tuple(statuses),
        residual_norms=history(norms),
        iterations=step,
        num_products=spent,
    )


class _Recurrence:
    """Preconditioned Lanczos and the rotations that solve its least-squares problem, by columns.

    After a step: ``change`` of the solution, ``residual``, and for each column whether it is
        ``flat``
    (the residual before the step was already a null vector: no change), ``exhausted`` (no further
    direction exists), ``indefinite`` (the preconditioner) or ``broken`` (not finite).
    """

    def __init__(
        self,
        operator: LinearOperator,
        preconditioner: LinearOperator | None,
        residual: Tensor,
    ) -> None:
        self.operator, self.preconditioner = operator, preconditioner
        self.residual = residual
        scaled = self._precondition(residual)
        self.gamma = dots(residual, scaled).clamp(min=0.0).sqrt()
        zero, none = torch.zeros_like(residual), torch.zeros_like(self.gamma)
        self.v, self.z = residual / self._safe(self.gamma), scaled / self._safe(self.gamma)
        self.v_old, self.w, self.w_old, self.change = zero, zero, zero, zero
        self.eta = self.gamma
        self.coupling, self.scale = none, none
        self.cosine, self.cosine_old = none + 1.0, none + 1.0
        self.sine, self.sine_old = none, none
        self.flat = self.exhausted = self.indefinite = self.broken = none > 1.0

    def select(self, columns: Tensor) -> None:
        """Keep some columns."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[..., columns])

    def step(self, floor: float) -> None:
        """Advance all columns by one product."""
        product = (self.operator @ self.z).detach()
        delta = dots(product, self.z)
        ahead = product - self._like(delta) * self.v - self._like(self.coupling) * self.v_old
        scaled = self._precondition(ahead)
        square = dots(ahead, scaled)
        gamma = square.clamp(min=0.0).sqrt()
        self.scale = torch.maximum(self.scale, (self.coupling**2 + delta**2 + gamma**2).sqrt())
        self.broken = ~(torch.isfinite(delta) & torch.isfinite(square))
        self.indefinite = square < -floor * self.scale**2
        # Two old rotations act on the new column of the tridiagonal matrix, a third clears gamma.
        third = self.sine_old * self.coupling
        second = self.sine * delta + self.cosine_old * self.cosine * self.coupling
        bar = self.cosine * delta - self.cosine_old * self.sine * self.coupling
        first = (bar**2 + gamma**2).sqrt()
        gradient = (bar**2 + (self.cosine * gamma) ** 2).sqrt()
        self.flat = (gradient <= floor * self.scale) & ~self.broken
        self.exhausted = gamma <= 10 * torch.finfo(product.dtype).eps * self.scale
        still = self.flat | self.broken | self.indefinite
        cosine = torch.where(still, 1.0, bar / first)
        sine = torch.where(still, 0.0, gamma / first)
        w = (self.z - self._like(third) * self.w_old - self._like(second) * self.w) / self._safe(
            torch.where(still, 1.0, first)
        )
        size = torch.where(still, 0.0, cosine * self.eta)
        self.change = torch.where(still, 0.0, self._like(size) * w)
        self.eta = -sine * self.eta
        following = ahead / self._safe(gamma)
        # The residual stays a combination of itself and the next Lanczos vector.
        turned = self._like(sine**2) * self.residual + self._like(cosine * self.eta) * following
        self.residual = torch.where(still, self.residual, turned)
        self.v_old, self.v, self.z = self.v, following, scaled / self._safe(gamma)
        self.w_old, self.w = self.w, w
        self.coupling = gamma
        self.cosine_old, self.cosine = self.cosine, cosine
        self.sine_old, self.sine = self.sine, sine

    def _precondition(self, columns: Tensor) -> Tensor:
        if self.preconditioner is None:
            return columns
        return (self.preconditioner @ columns).detach()

    def _like(self, numbers: Tensor) -> Tensor:
        return numbers.to(self.residual.dtype)

    def _safe(self, numbers: Tensor) -> Tensor:
        """Divisors in the vectors' dtype; columns that would divide by zero are stopped anyway."""
        return self._like(torch.where(numbers > 0, numbers, 1.0))
