"""A block-diagonal operator over any partition of the coordinates."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.factor import worst
from kobai.linalg.operators.kronecker import inverses
from kobai.linalg.operators.operator import Index, LinearOperator, check_same_space, positions_of
from kobai.linalg.operators.solvable import DampingForm, MatrixFunction, SolvableOperator


@final
class BlockDiagonal(SolvableOperator):
    """Blocks on a partition of the coordinates, zero between them.

    Args:
        blocks: square operators. Products take any; inverses, powers, traces and diagonals need
            each block to be a `SolvableOperator`.
        indices: for each block its coordinates, as slices or integer tensors; together they hold
            each of 0..n-1 once. None: consecutive ranges in order.

    Raises:
        ValueError: no blocks, a size that does not fit, coordinates missing or held twice.
        TypeError: blocks of different dtype or device.
    """

    def __init__(
        self, blocks: Sequence[LinearOperator], indices: Sequence[Index] | None = None
    ) -> None:
        if not blocks:
            raise ValueError("a block-diagonal operator needs at least one block")
        check_same_space(blocks)
        sizes = [block.shape[0] for block in blocks]
        for block in blocks:
            if block.shape[0] != block.shape[1]:
                raise ValueError(f"blocks on the diagonal are square; got shape {block.shape}")
        size = sum(sizes)
        if indices is None:
            ends = torch.tensor(sizes).cumsum(0).tolist()
            indices = [slice(end - own, end) for end, own in zip(ends, sizes, strict=True)]
        if len(indices) != len(blocks):
            raise ValueError(f"{len(blocks)} blocks need as many indices; got {len(indices)}")
        device = blocks[0].device
        held = torch.zeros(size, dtype=torch.int64)
        places: list[Index] = []
        for index, own in zip(indices, sizes, strict=True):
            positions = positions_of(index, size)
            if positions.numel() != own:
                raise ValueError(f"a block of size {own} has {positions.numel()} coordinates")
            held[positions.cpu()] += 1
            # A slice is a view, a tensor of positions a copy: keep slices.
            places.append(index if isinstance(index, slice) else positions.to(device))
        if not bool((held == 1).all()):
            raise ValueError(
                f"each of the {size} coordinates belongs to one block; {int((held == 0).sum())} "
                f"belong to none, {int((held > 1).sum())} to several"
            )
        self.blocks = tuple(blocks)
        self.indices = tuple(places)
        super().__init__(
            (size, size),
            dtype=blocks[0].dtype,
            device=device,
            symmetric=all(block.symmetric for block in blocks),
            positive_semidefinite=all(block.positive_semidefinite for block in blocks),
        )

    def trace(self) -> float:
        """Sum of the blocks' traces."""
        return sum(block.trace() for block in self._solvable())

    def diagonal(self) -> Float[Tensor, "n"]:
        """The blocks' diagonals, each in its place."""
        whole = torch.empty(self.shape[0], dtype=self.dtype, device=self.device)
        for block, index in zip(self._solvable(), self.indices, strict=True):
            whole[index] = block.diagonal()
        return whole

    def _matmat(self, columns: Tensor) -> Tensor:
        product = torch.empty_like(columns)
        for block, index in zip(self.blocks, self.indices, strict=True):
            product[index] = block @ columns[index]
        return product

    def _adjoint(self) -> LinearOperator:
        return BlockDiagonal([block.T for block in self.blocks], self.indices)

    def _inverse(self, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return self._joined(inverses(self._solvable(), damping, damping_form))

    def _power(self, exponent: float, damping: float, damping_form: DampingForm) -> MatrixFunction:
        return self._joined(
            [block.power(exponent, damping, damping_form) for block in self._solvable()]
        )

    def _joined(self, parts: Sequence[MatrixFunction]) -> MatrixFunction:
        return MatrixFunction(
            BlockDiagonal(parts, self.indices),
            status=worst([part.status for part in parts]),
            jitter=max(part.jitter for part in parts),
            log_determinant=sum(part.log_determinant for part in parts),
        )

    def _solvable(self) -> list[SolvableOperator]:
        solvable = [block for block in self.blocks if isinstance(block, SolvableOperator)]
        if len(solvable) < len(self.blocks):
            kinds = sorted({type(b).__name__ for b in self.blocks if b not in solvable})
            raise TypeError(f"blocks of type {', '.join(kinds)} have no inverse, trace or diagonal")
        return solvable
