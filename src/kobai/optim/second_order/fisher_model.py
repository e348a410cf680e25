"""Models of the objective with a Fisher or Gauss-Newton matrix."""

from jaxtyping import Float
from torch import Tensor

from kobai.curvature import Fisher
from kobai.linalg import LinearOperator
from kobai.linalg.operators.solvable import DampingForm
from kobai.optim.second_order.base import SecondOrder
from kobai.optim.second_order.descent import RiskModel
from kobai.optim.second_order.evaluator import Start, inner
from kobai.optim.second_order.fisher_solve import Direction, natural_direction

SOLVE_COUNTS = ("jittered_solves", "unconverged_solves", "cg_iterations")
"""Counts of `FisherModel.solve`."""


class FisherModel(RiskModel):
    """A model whose matrix is a structure of the Fisher matrix.

    Args:
        optimizer: Its counts are raised.
        start: The point.
        fisher: The matrix there.
        damping_form: How damping is shared out to factors.
    """

    def __init__(
        self,
        optimizer: SecondOrder,
        start: Start,
        fisher: Fisher,
        damping_form: DampingForm = "exact",
    ) -> None:
        self.start, self.optimizer = start, optimizer
        self._fisher = fisher
        self._form: DampingForm = damping_form

    def solve(self, damping: float) -> Direction:
        """Compute (F + λ)⁻¹ g and count what the solve took."""
        counts = self.optimizer.record["counts"]
        found = natural_direction(self._fisher, self.start.gradient, damping, self._form)
        counts["jittered_solves"] += found.status in ("jittered", "pseudo-inverse")
        counts["cg_iterations"] += found.iterations
        counts["unconverged_solves"] += bool(found.iterations) and found.status != "ok"
        return found

    def operator(self) -> LinearOperator:
        """Give the matrix."""
        return self._fisher

    def curvature(self, direction: Float[Tensor, " P"]) -> float:
        """Compute pᵀFp."""
        return inner(direction, self._fisher @ direction)
