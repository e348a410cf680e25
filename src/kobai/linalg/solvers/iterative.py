"""The inverse of an operator that is too large to factorise: each product is a run of CG."""

import math
from typing import final

import torch
from torch import Tensor

from kobai.linalg.operators.operator import LinearOperator
from kobai.linalg.operators.solvable import MatrixFunction
from kobai.linalg.solvers.conjugate_gradient import conjugate_gradient
from kobai.linalg.solvers.solution import Solution


@final
class IterativeInverse(LinearOperator):
    """(A + λ I)⁻¹ as products by conjugate gradients, with what they cost and how they ended.

    Accurate to ``tol``, not to rounding; linear to that accuracy only.

    Args:
        operator: A, symmetric positive semidefinite.
        damping: λ.
        tol: relative residual of each solve; default 1e-6, or ten roundings where that is more.
        max_iterations: most steps of a solve.

    Attributes:
        solution: the latest solve, with its residuals; None before the first.
        num_products: products with A in all solves so far.
    """

    def __init__(
        self,
        operator: LinearOperator,
        damping: float,
        *,
        tol: float | None = None,
        max_iterations: int = 500,
    ) -> None:
        self._damped = operator.damped(damping) if damping else operator
        self.tol = max(1e-6, 10 * torch.finfo(operator.dtype).eps) if tol is None else tol
        self.max_iterations = max_iterations
        self.solution: Solution | None = None
        self.num_products = 0
        super().__init__(
            operator.shape,
            dtype=operator.dtype,
            device=operator.device,
            positive_semidefinite=True,
        )

    @property
    def solve_status(self) -> str:
        """The end of the latest solve: "ok" or its status; "unsolved" before the first."""
        if self.solution is None:
            return "unsolved"
        return "ok" if self.solution.status == "converged" else self.solution.status

    def _matmat(self, columns: Tensor) -> Tensor:
        self.solution = conjugate_gradient(
            self._damped, columns, tol=self.tol, max_iterations=self.max_iterations
        )
        self.num_products += self.solution.num_products
        return self.solution.value

    def _adjoint(self) -> LinearOperator:
        return self


def iterative_inverse(operator: LinearOperator, damping: float) -> MatrixFunction:
    """The inverse of a damped operator by conjugate gradients, as other inverses come.

    Its status follows the latest solve, and its log determinant is unknown (NaN).

    Args:
        operator: symmetric positive semidefinite.
        damping: added to its diagonal.
    """
    inverse = IterativeInverse(operator, damping)
    return MatrixFunction(
        inverse, status=inverse.solve_status, jitter=0.0, log_determinant=math.nan
    )
