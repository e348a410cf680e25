"""What expressions with operators build: sums, multiples, compositions, shifts, sub-blocks."""

import itertools
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from kobai.linalg.operator import Index, LinearOperator, positions_of


def check_same_space(operators: Sequence[LinearOperator]) -> None:
    """Raise TypeError unless all operators share dtype and device."""
    kinds = {(operator.dtype, operator.device) for operator in operators}
    if len(kinds) > 1:
        raise TypeError(
            f"operators of one expression share dtype and device; got {sorted(map(str, kinds))}"
        )


@final
class Sum(LinearOperator):
    """A + B + …: one product of each term per column."""

    def __init__(self, terms: Sequence[LinearOperator]) -> None:
        if not terms:
            raise ValueError("a sum needs at least one operator")
        shapes = {term.shape for term in terms}
        if len(shapes) > 1:
            raise ValueError(f"summed operators share one shape; got {sorted(shapes)}")
        check_same_space(terms)
        flat: list[LinearOperator] = []
        for term in terms:
            flat.extend(term.terms if isinstance(term, Sum) else (term,))
        self.terms = tuple(flat)
        super().__init__(
            terms[0].shape,
            dtype=terms[0].dtype,
            device=terms[0].device,
            symmetric=all(term.symmetric for term in terms),
            positive_semidefinite=all(term.positive_semidefinite for term in terms),
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        total = self.terms[0] @ columns
        for term in self.terms[1:]:
            total = total + term @ columns
        return total

    def _adjoint(self) -> LinearOperator:
        return Sum(tuple(term.T for term in self.terms))


@final
class Scaled(LinearOperator):
    """factor * A."""

    def __init__(self, factor: float | int, operator: LinearOperator) -> None:
        if not np.isfinite(factor):
            raise ValueError(f"an operator is scaled by a finite number; got {factor}")
        self.factor = float(factor)
        self.operator = operator
        super().__init__(
            operator.shape,
            dtype=operator.dtype,
            device=operator.device,
            symmetric=operator.symmetric,
            positive_semidefinite=operator.positive_semidefinite and factor >= 0,
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        return self.factor * (self.operator @ columns)

    def _adjoint(self) -> LinearOperator:
        return Scaled(self.factor, self.operator.T)


@final
class Product(LinearOperator):
    """A @ B @ …: the composition, applied from the right.

    Args:
        factors: the operators, in the order they are written.
        symmetric: declare the composition symmetric, as for ``(S, H, S)``.
        positive_semidefinite: declare it positive semidefinite, as for ``(J.T, J)``.
    """

    def __init__(
        self,
        factors: Sequence[LinearOperator],
        *,
        symmetric: bool = False,
        positive_semidefinite: bool = False,
    ) -> None:
        if not factors:
            raise ValueError("a product needs at least one operator")
        for left, right in itertools.pairwise(factors):
            if left.shape[1] != right.shape[0]:
                raise ValueError(f"cannot compose shapes {left.shape} and {right.shape}")
        check_same_space(factors)
        flat: list[LinearOperator] = []
        for factor in factors:
            flat.extend(factor.factors if isinstance(factor, Product) else (factor,))
        self.factors = tuple(flat)
        super().__init__(
            (factors[0].shape[0], factors[-1].shape[1]),
            dtype=factors[0].dtype,
            device=factors[0].device,
            symmetric=symmetric,
            positive_semidefinite=positive_semidefinite,
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            columns = factor @ columns
        return columns

    def _adjoint(self) -> LinearOperator:
        return Product(tuple(factor.T for factor in reversed(self.factors)))


@final
class Damped(LinearOperator):
    """A + damping I for a square A.

    Args:
        operator: the square matrix A.
        damping: multiple of the identity; may be negative (a shift).
    """

    def __init__(self, operator: LinearOperator, damping: float | int) -> None:
        if operator.shape[0] != operator.shape[1]:
            raise ValueError(f"only a square operator can be damped; got shape {operator.shape}")
        if not np.isfinite(damping):
            raise ValueError(f"damping is a finite number; got {damping}")
        self.operator = operator
        self.damping = float(damping)
        super().__init__(
            operator.shape,
            dtype=operator.dtype,
            device=operator.device,
            symmetric=operator.symmetric,
            positive_semidefinite=operator.positive_semidefinite and damping >= 0,
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        return torch.add(self.operator @ columns, columns, alpha=self.damping)

    def _adjoint(self) -> LinearOperator:
        return Damped(self.operator.T, self.damping)


@final
class Sub(LinearOperator):
    """The principal sub-block A[index, index]; one product of the whole A per column.

    Args:
        operator: the square matrix A.
        index: a slice, or the distinct positions as an integer tensor.

    Raises:
        ValueError: A not square; positions out of range, repeated or empty.
    """

    def __init__(self, operator: LinearOperator, index: Index) -> None:
        size = operator.shape[0]
        if size != operator.shape[1]:
            raise ValueError(f"a principal block needs a square operator; got {operator.shape}")
        positions = positions_of(index, size).to(operator.device)
        if positions.numel() == 0:
            raise ValueError(f"the block {index} of an operator of size {size} is empty")
        self.operator = operator
        self.positions = positions
        super().__init__(
            (positions.numel(), positions.numel()),
            dtype=operator.dtype,
            device=operator.device,
            symmetric=operator.symmetric,
            positive_semidefinite=operator.positive_semidefinite,
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        padded = columns.new_zeros(self.operator.shape[0], columns.shape[1])
        padded[self.positions] = columns
        return (self.operator @ padded)[self.positions]

    def _adjoint(self) -> LinearOperator:
        return Sub(self.operator.T, self.positions)


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
