"""The matrix nobody stores: an operator multiplies vectors and blocks of columns, and composes.

A new operator derives from `LinearOperator`, passes its shape, dtype and device to the constructor
and implements two methods: ``_matmat`` (a block of columns at once) and ``_adjoint``. Everything
else (checks, single vectors, sums, products, sub-blocks, dense and SciPy forms) is written here
once. What expressions with operators build (sums, multiples, compositions, shifts, sub-blocks)
stands below the class.

Cost is counted in *products*: one product is one column multiplied.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final, overload

import numpy as np
import scipy.sparse.linalg
import torch
from jaxtyping import Float, Int
from torch import Tensor

Index = slice | Int[Tensor, "_"]


class LinearOperator(ABC):
    """A real m x n matrix known through its products (interface).

    Derived classes implement ``_matmat(columns)``, which maps an (n, k) block to the (m, k) block
    of products, and ``_adjoint()``, which returns the transpose as an operator (``self`` when
    symmetric). The columns they receive are already checked.

    Args:
        shape: (m, n).
        dtype: floating-point type of the vectors it takes and returns.
        device: where these vectors live.
        symmetric: the matrix equals its transpose. Declared, not tested; `eigenvalues` reports a
            status when the products contradict it.
        positive_semidefinite: declared as well; implies symmetric.

    Raises:
        ValueError: negative shape, or a symmetric operator that is not square.
        TypeError: a dtype that is not real floating point.
    """

    # NumPy scalars then leave ``scalar * operator`` to ``__rmul__``.
    __array_ufunc__ = None
    # Without it Python would iterate over ``__getitem__``.
    __iter__ = None

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        symmetric: bool = False,
        positive_semidefinite: bool = False,
    ) -> None:
        rows, columns = (int(size) for size in shape)
        if rows < 0 or columns < 0:
            raise ValueError(f"an operator has non-negative sizes; got shape {tuple(shape)}")
        if not dtype.is_floating_point:
            raise TypeError(f"an operator works on real floating-point vectors; got {dtype}")
        symmetric = symmetric or positive_semidefinite
        if symmetric and rows != columns:
            raise ValueError(f"a symmetric operator is square; got shape {tuple(shape)}")
        self._shape = (rows, columns)
        self._dtype = dtype
        self._device = torch.device(device)
        self._symmetric = symmetric
        self._positive_semidefinite = positive_semidefinite

    @abstractmethod
    def _matmat(self, columns: Tensor) -> Tensor:
        """Products with an (n, k) block of columns: (m, k). One column may come as k = 1."""

    @abstractmethod
    def _adjoint(self) -> "LinearOperator":
        """The transpose as an operator of shape (n, m)."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): length of the vectors returned, length of the vectors taken."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vectors taken and returned."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Device of the vectors taken and returned."""
        return self._device

    @property
    def symmetric(self) -> bool:
        """True if the matrix is declared equal to its transpose."""
        return self._symmetric

    @property
    def positive_semidefinite(self) -> bool:
        """True if the matrix is declared symmetric without negative eigenvalues."""
        return self._positive_semidefinite

    @property
    def T(self) -> "LinearOperator":
        """The transpose; the operator itself when symmetric."""
        return self if self._symmetric else self._adjoint()

    def matvec(self, vector: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """One product: A v. The same as ``A @ v`` for a vector."""
        if vector.ndim != 1:
            raise ValueError(f"matvec takes a vector; got shape {tuple(vector.shape)}")
        return self @ vector

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: "LinearOperator") -> "LinearOperator": ...
    def __matmul__(self, other: "LinearOperator | Tensor") -> "LinearOperator | Tensor":
        if isinstance(other, LinearOperator):
            return Product((self, other))
        if not isinstance(other, Tensor):
            return NotImplemented
        if other.ndim not in (1, 2) or other.shape[0] != self._shape[1]:
            raise ValueError(
                f"{type(self).__name__} of shape {self._shape} multiplies ({self._shape[1]},) "
                f"vectors or ({self._shape[1]}, k) blocks of columns; got {tuple(other.shape)}"
            )
        if other.dtype != self._dtype:
            raise TypeError(
                f"{type(self).__name__} works in {self._dtype}; got {other.dtype}: "
                f"convert the vector with .to({self._dtype})"
            )
        columns = other.unsqueeze(1) if other.ndim == 1 else other
        if columns.shape[1] == 0:
            return other.new_zeros(self._shape[0], 0)
        product = self._matmat(columns)
        return product.squeeze(1) if other.ndim == 1 else product

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        return Sum((self, other)) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        return Sum((self, -other)) if isinstance(other, LinearOperator) else NotImplemented

    def __neg__(self) -> "LinearOperator":
        return Scaled(-1.0, self)

    def __mul__(self, factor: "float | int | Tensor") -> "LinearOperator":
        if isinstance(factor, LinearOperator) or np.ndim(factor) != 0:
            raise TypeError("* scales an operator by a number; compose operators with @")
        return Scaled(float(factor), self)

    __rmul__ = __mul__

    def __truediv__(self, divisor: "float | int | Tensor") -> "LinearOperator":
        return self * (1.0 / float(divisor))

    def __getitem__(self, index: Index) -> "LinearOperator":
        return Sub(self, index)

    def damped(self, damping: float | int) -> "LinearOperator":
        """A + damping I."""
        return Damped(self, damping)

    def dense(self, chunk: int = 128) -> Float[Tensor, "m n"]:
        """The matrix, written out.

        Costs n products, in blocks of ``chunk`` columns, and m n numbers of memory.
        """
        if chunk < 1:
            raise ValueError(f"chunk is a number of columns, at least 1; got {chunk}")
        rows, size = self._shape
        matrix = torch.empty(rows, size, dtype=self._dtype, device=self._device)
        for start in range(0, size, chunk):
            stop = min(start + chunk, size)
            columns = torch.zeros(size, stop - start, dtype=self._dtype, device=self._device)
            columns[torch.arange(start, stop), torch.arange(stop - start)] = 1.0
            matrix[:, start:stop] = self._matmat(columns)
        return matrix

    def to_scipy(self) -> scipy.sparse.linalg.LinearOperator:
        """The same matrix for SciPy: float64 NumPy vectors, products on the operator's device.

        Each product copies its vectors between NumPy and the device, and rounds them to the
        operator's dtype.
        """

        def through(operator: LinearOperator, array: np.ndarray) -> np.ndarray:
            columns = torch.as_tensor(np.array(array, dtype=np.float64))
            product = operator @ columns.to(device=operator.device, dtype=operator.dtype)
            return product.detach().to(device="cpu", dtype=torch.float64).numpy()

        # SciPy's class builds one of its own subclasses from these arguments.
        build: Any = scipy.sparse.linalg.LinearOperator
        return build(
            shape=self._shape,
            dtype=np.dtype(np.float64),
            matvec=lambda v: through(self, v),
            matmat=lambda v: through(self, v),
            rmatvec=lambda v: through(self.T, v),
            rmatmat=lambda v: through(self.T, v),
        )

    def __repr__(self) -> str:
        kind = (
            "positive semidefinite, "
            if self._positive_semidefinite
            else "symmetric, "
            if self._symmetric
            else ""
        )
        return (
            f"{type(self).__name__}({self._shape[0]} x {self._shape[1]}, {kind}"
            f"{str(self._dtype).removeprefix('torch.')}, {self._device})"
        )


def positions_of(index: Index, size: int) -> Int[Tensor, "count"]:
    """A block's index as a tensor of distinct positions in [0, size).

    Raises:
        TypeError: neither a slice nor an integer tensor.
        ValueError: positions out of range or repeated.
    """
    if isinstance(index, slice):
        return torch.arange(*index.indices(size))
    if (
        not isinstance(index, Tensor)
        or index.dtype not in (torch.int64, torch.int32)
        or index.ndim != 1
    ):
        raise TypeError(f"a block is a slice or a one-dimensional integer tensor; got {index!r}")
    positions = index.to(torch.int64)
    if positions.numel():
        low, high = int(positions.min()), int(positions.max())
        if low < 0 or high >= size:
            raise ValueError(f"positions of a block lie in [0, {size}); got {low} to {high}")
        if positions.unique().numel() != positions.numel():
            raise ValueError("positions of a block are distinct; some are repeated")
    return positions


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
