"""The plainest operators: a matrix, a diagonal, the identity, a function, a counter of products."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.factor import Factor, Spectral, cholesky, eigh
from kobai.linalg.operators.operator import LinearOperator
from kobai.linalg.operators.solvable import (
    DampingForm,
    MatrixFunction,
    SolvableOperator,
    shifted_power,
)


@final
class Dense(SolvableOperator):
    """A matrix that is stored.

    Solving takes a Cholesky factorisation, n³ / 3 operations once and 2 n² a column.

    Args:
        matrix: (m, n).
        symmetric: declare it; None tests it, to within rounding.
        positive_semidefinite: declare it.

    Raises:
        ValueError: not a matrix.
    """

    def __init__(
        self,
        matrix: Float[Tensor, "m n"],
        *,
        symmetric: bool | None = None,
        positive_semidefinite: bool = False,
    ) -> None:
        if matrix.ndim != 2:
            raise ValueError(f"Dense takes a matrix; got shape {tuple(matrix.shape)}")
        if symmetric is None:
            symmetric = positive_semidefinite or _is_symmetric(matrix)
        self.matrix = matrix
        self._spectral: Spectral | None = None
        super().__init__(
            (matrix.shape[0], matrix.shape[1]),
            dtype=matrix.dtype,
            device=matrix.device,
            symmetric=symmetric,
            positive_semidefinite=positive_semidefinite,
        )

    def trace(self) -> float:
        """Sum of the diagonal."""
        return float(self.diagonal().sum(dtype=torch.float64))

    def diagonal(self) -> Float[Tensor, "n"]:
        """The diagonal."""
        return self.matrix.diagonal().clone()

    def _matmat(self, columns: Tensor) -> Tensor:
        return self.matrix @ columns

    def _adjoint(self) -> LinearOperator:
        return Dense(self.matrix.T, symmetric=self.symmetric)

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        factor = cholesky(self.matrix, damping=damping)
        return MatrixFunction(
            _Solve(factor),
            status=factor.status,
            jitter=float(factor.jitter),
            log_determinant=float(factor.logdet()),
        )

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        if self._spectral is None:
            self._spectral = eigh(self.matrix)
        spectral = self._spectral
        resolution = self.shape[0] * torch.finfo(torch.float64).eps
        powers, status, jitter, logdet = shifted_power(
            spectral.values, exponent, damping, resolution
        )
        matrix = (spectral.vectors * powers) @ spectral.vectors.T
        return MatrixFunction(
            Dense(matrix.to(self.dtype), positive_semidefinite=True),
            status=spectral.status if spectral.status != "ok" else status,
            jitter=jitter,
            log_determinant=logdet,
        )


@final
class _Solve(LinearOperator):
    """Multiplication by the inverse of a matrix whose Cholesky factor is known."""

    def __init__(self, factor: Factor) -> None:
        self._factor = factor
        size = factor.triangle.shape[-1]
        super().__init__(
            (size, size),
            dtype=factor.dtype,
            device=factor.triangle.device,
            positive_semidefinite=True,
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        return self._factor.solve(columns)

    def _adjoint(self) -> LinearOperator:
        return self


@final
class Diagonal(SolvableOperator):
    """A diagonal matrix.

    Args:
        entries: (n,) its diagonal.
        positive_semidefinite: declare that no entry is negative; None looks.
    """

    def __init__(
        self, entries: Float[Tensor, "n"], *, positive_semidefinite: bool | None = None
    ) -> None:
        if entries.ndim != 1:
            raise ValueError(f"Diagonal takes a vector; got shape {tuple(entries.shape)}")
        if positive_semidefinite is None:
            positive_semidefinite = bool((entries >= 0).all())
        self.entries = entries
        super().__init__(
            (entries.numel(), entries.numel()),
            dtype=entries.dtype,
            device=entries.device,
            symmetric=True,
            positive_semidefinite=positive_semidefinite,
        )

    def trace(self) -> float:
        """Sum of the entries."""
        return float(self.entries.sum(dtype=torch.float64))

    def diagonal(self) -> Float[Tensor, "n"]:
        """The entries."""
        return self.entries.clone()

    def _matmat(self, columns: Tensor) -> Tensor:
        return self.entries[:, None] * columns

    def _adjoint(self) -> LinearOperator:
        return self

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return self._power(-1.0, damping, damping_form)

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        powers, status, jitter, logdet = shifted_power(self.entries, exponent, damping, 0.0)
        return MatrixFunction(
            Diagonal(powers.to(self.dtype), positive_semidefinite=True),
            status=status,
            jitter=jitter,
            log_determinant=logdet,
        )


@final
class Identity(SolvableOperator):
    """The identity.

    Args:
        size: number of rows.
        dtype: Type of the vectors.
        device: Device of the vectors.
    """

    def __init__(
        self, size: int, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__((size, size), dtype=dtype, device=device, positive_semidefinite=True)

    def trace(self) -> float:
        """The number of rows."""
        return float(self.shape[0])

    def diagonal(self) -> Float[Tensor, "n"]:
        """All ones: the diagonal of the identity."""
        return torch.ones(self.shape[0], dtype=self.dtype, device=self.device)

    def _matmat(self, columns: Tensor) -> Tensor:
        return columns.clone()

    def _adjoint(self) -> LinearOperator:
        return self

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return self._power(-1.0, damping, damping_form)

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        one = torch.tensor([1.0], dtype=torch.float64)
        powers, status, jitter, logdet = shifted_power(one, exponent, damping, 0.0)
        return MatrixFunction(
            float(powers) * self,
            status=status,
            jitter=jitter,
            log_determinant=self.shape[0] * logdet,
        )


@final
class Function(LinearOperator):
    """An operator from a function that multiplies.

    Args:
        function: maps an (n, k) block to the (m, k) block of products.
        shape: (m, n).
        dtype: Type of the vectors.
        device: Device of the vectors.
        symmetric: declare it.
        positive_semidefinite: declare it.
        adjoint: the same for the transpose; not needed when symmetric.
        columns: False when ``function`` takes one vector at a time; blocks are then looped over.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        shape: tuple[int, int],
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        symmetric: bool = False,
        positive_semidefinite: bool = False,
        adjoint: Callable[[Tensor], Tensor] | None = None,
        columns: bool = True,
    ) -> None:
        self._function = function
        self._transposed = adjoint
        self._columns = columns
        super().__init__(
            shape,
            dtype=dtype,
            device=device,
            symmetric=symmetric,
            positive_semidefinite=positive_semidefinite,
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        if self._columns:
            return self._function(columns)
        return torch.stack([self._function(column) for column in columns.unbind(1)], dim=1)

    def _adjoint(self) -> LinearOperator:
        if self._transposed is None:
            raise ValueError("this Function has no transpose; pass adjoint= or symmetric=True")
        return Function(
            self._transposed,
            (self.shape[1], self.shape[0]),
            dtype=self.dtype,
            device=self.device,
            adjoint=self._function,
            columns=self._columns,
        )


def _is_symmetric(matrix: Tensor) -> bool:
    """Tell whether a matrix equals its transpose to within rounding."""
    if matrix.shape[0] != matrix.shape[1]:
        return False
    if matrix.numel() == 0:
        return True
    limit = 16 * torch.finfo(matrix.dtype).eps * matrix.abs().max()
    return bool((matrix - matrix.T).abs().max() <= limit)


@final
class Counted(LinearOperator):
    """Another operator that counts its products.

    Attributes:
        count: columns multiplied so far, those of the transpose included.
    """

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self._tally = [0]
        super().__init__(
            operator.shape,
            dtype=operator.dtype,
            device=operator.device,
            symmetric=operator.symmetric,
            positive_semidefinite=operator.positive_semidefinite,
        )

    @property
    def count(self) -> int:
        """Columns multiplied so far, those of the transpose included."""
        return self._tally[0]

    def _matmat(self, columns: Tensor) -> Tensor:
        self._tally[0] += columns.shape[1]
        return self.operator @ columns

    def _adjoint(self) -> LinearOperator:
        transpose = Counted(self.operator.T)
        transpose._tally = self._tally
        return transpose
