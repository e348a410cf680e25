"""The matrix nobody stores: an operator multiplies vectors and blocks of columns, and composes.

A new operator derives from `LinearOperator`, passes its shape, dtype and device to the constructor
and implements two methods: ``_matmat`` (a block of columns at once) and ``_adjoint``. Everything
    else (checks,
single vectors, sums, products, sub-blocks, dense and SciPy forms) is written here once.

Cost is counted in *products*: one product is one column multiplied.
"""

from abc import ABC, abstractmethod
from types import ModuleType
from typing import Any, overload

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
        """Whether the matrix is declared equal to its transpose."""
        return self._symmetric

    @property
    def positive_semidefinite(self) -> bool:
        """Whether the matrix is declared symmetric without negative eigenvalues."""
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

    def matmat(self, columns: Float[Tensor, "n k"]) -> Float[Tensor, "m k"]:
        """A block of k products: A V. The same as ``A @ V`` for a matrix."""
        if columns.ndim != 2:
            raise ValueError(f"matmat takes a matrix; got shape {tuple(columns.shape)}")
        return self @ columns

    def rmatvec(self, vector: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
        """One product with the transpose: A^T v."""
        return self.T.matvec(vector)

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    @overload
    def __matmul__(self, other: "LinearOperator") -> "LinearOperator": ...
    def __matmul__(self, other: "LinearOperator | Tensor") -> "LinearOperator | Tensor":
        if isinstance(other, LinearOperator):
            return _algebra().Product((self, other))
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
        return (
            _algebra().Sum((self, other)) if isinstance(other, LinearOperator) else NotImplemented
        )

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        return (
            _algebra().Sum((self, -other)) if isinstance(other, LinearOperator) else NotImplemented
        )

    def __neg__(self) -> "LinearOperator":
        return _algebra().Scaled(-1.0, self)

    def __mul__(self, factor: "float | int | Tensor") -> "LinearOperator":
        if isinstance(factor, LinearOperator) or np.ndim(factor) != 0:
            raise TypeError("* scales an operator by a number; compose operators with @")
        return _algebra().Scaled(float(factor), self)

    __rmul__ = __mul__

    def __truediv__(self, divisor: "float | int | Tensor") -> "LinearOperator":
        return self * (1.0 / float(divisor))

    def __getitem__(self, index: Index) -> "LinearOperator":
        return _algebra().Sub(self, index)

    def damped(self, damping: float | int) -> "LinearOperator":
        """A + damping I."""
        return _algebra().Damped(self, damping)

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


def _algebra() -> ModuleType:
    """The operators that expressions build: they derive from the class above, so import late."""
    from kobai.linalg import algebra

    return algebra
