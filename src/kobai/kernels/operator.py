"""The tangent kernel that is not stored: products by one vector-Jacobian product and one Jv."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from kobai.curvature import Jacobian
from kobai.kernels.inputs import Points, at_points
from kobai.linalg import LinearOperator
from kobai.problem import EmpiricalRisk


@final
class TangentKernel(LinearOperator):
    """J(x1) J(x2)ᵀ as an operator, (N1 C) × (N2 C), for kernels too large to store.

    Rows and columns follow the examples, then their outputs: the order of
    ``objective.outputs(theta).flatten()``. Not divided by N. One product costs about a backward
    pass over x2 and a forward pass over x1.

    Args:
        objective: The network; its examples are the default points.
        x1: Points of the rows; see `kobai.kernels.ntk`.
        x2: Points of the columns; default: those of the rows.
        theta: Where; default: the module's parameters now.
        keep: Keep the graphs between products; see `kobai.curvature.Jacobian`.

    Raises:
        ValueError: If the points belong to another model or the module is not a function of θ.
    """

    def __init__(
        self,
        objective: EmpiricalRisk,
        x1: Points | None = None,
        x2: Points | None = None,
        *,
        theta: Float[Tensor, " P"] | None = None,
        keep: bool | None = None,
    ) -> None:
        theta = (objective.theta() if theta is None else theta).detach().clone()
        self._left = Jacobian(at_points(objective, x1), theta, keep=keep)
        self._right = (
            self._left if x2 is None else Jacobian(at_points(objective, x2), theta, keep=keep)
        )
        super().__init__(
            (self._left.shape[0], self._right.shape[0]),
            dtype=theta.dtype,
            device=theta.device,
            positive_semidefinite=x2 is None,
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        return self._left @ (self._right.T @ columns)

    def _adjoint(self) -> LinearOperator:
        return _Transposed(self)


@final
class _Transposed(LinearOperator):
    """J(x2) J(x1)ᵀ."""

    def __init__(self, kernel: TangentKernel) -> None:
        self._kernel = kernel
        rows, columns = kernel.shape
        super().__init__((columns, rows), dtype=kernel.dtype, device=kernel.device)

    def _matmat(self, columns: Tensor) -> Tensor:
        return self._kernel._right @ (self._kernel._left.T @ columns)

    def _adjoint(self) -> LinearOperator:
        return self._kernel
