"""The interface of curvature blocks: moments → average → factor(damping) → multiply, solve.

A block is the part of a Fisher matrix that belongs to the matrices of one or several layers. Blocks
of one kind and shape lie in a stack, so that one batched factorisation and two batched products
serve all of them: parameters are S matrices of M × K entries (weights with their bias as the last
column; scale and shift of U units as one U × 2 matrix; any other parameter as one row).
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.blocks.shifted_inverse import REPLACED
from kobai.curvature.rows import Rows

STATISTICS_DECAY = 0.95
"""Weight of the past in a moving average once it is older than twenty updates; younger ones are
plain means, which is the bias correction of Martens and Grosse 2015, §5."""


def past_weight(count: int) -> float:
    """Return the weight of the past when update number `count` (from 1) enters an average."""
    return min(1.0 - 1.0 / count, STATISTICS_DECAY)


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of second moments: the parameters' own, but at least float32."""
    return torch.promote_types(dtype, torch.float32)


def flush_(tensor: Tensor) -> None:
    """Set entries that are subnormal numbers, or about to become so, to zero, in place.

    Averages of what has ceased (a dead unit, a pixel that is always black, a certain prediction)
    decay into numbers that processors multiply many times slower than others.
    """
    torch.hardshrink(tensor, torch.finfo(tensor.dtype).tiny * 2.0**20, out=tensor)


@final
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Inversions:
    """Count how the layers of one refresh were inverted.

    Attributes:
        float64: Layers that needed float64.
        damped: Layers that needed more damping.
        failed: Layers that could not be inverted and keep their old inverse.
        cholesky: Layers that Newton-Schulz left to Cholesky.
    """

    float64: int = 0
    damped: int = 0
    failed: int = 0
    cholesky: int = 0

    @classmethod
    def of(cls, *statuses: int) -> "Inversions":
        """Count one layer, by the statuses of its matrices."""
        worst = max(code % REPLACED for code in statuses)
        return cls(
            float64=int(worst == 1),
            damped=int(worst == 2),
            failed=int(worst == 3),
            cholesky=int(any(code >= REPLACED for code in statuses)),
        )

    def __add__(self, other: "Inversions") -> "Inversions":
        return Inversions(
            float64=self.float64 + other.float64,
            damped=self.damped + other.damped,
            failed=self.failed + other.failed,
            cholesky=self.cholesky + other.cholesky,
        )


class Block(ABC):
    """Fisher blocks of one kind and shape in a stack (interface).

    Attributes:
        kind: Name of the kind, as coverage tables show it.
        factored: Whether `solve` needs `factor` first; otherwise averages are enough.
        shape: (S, M, K) of the matrices that the blocks multiply.
        cost: Multiplications to factor one of the S blocks, roughly.
    """

    kind: ClassVar[str]
    factored: ClassVar[bool] = True
    shape: tuple[int, int, int]
    cost: float = 0.0

    @abstractmethod
    def average(self, own: slice, moments: Any, past: float, weight: float) -> bool:
        """Take second moments into the moving averages: past · average + (1 − past) · new.

        Args:
            own: Entries of the stack that they belong to.
            moments: Sums, of the form that this kind of block has; not yet divided by anything.
            past: Weight of the past.
            weight: W, the normaliser of the objective.

        Returns:
            False, and nothing is changed, if they are missing or not finite.
        """

    def moments_of(self, rows: Rows) -> Tensor:
        """Return the sums that `average` takes, from gradients example by example.

        Kinds that are built from factors of the gradients have `FactorSums` instead.
        """
        raise TypeError(f"{type(self).__name__} takes factor sums, not rows")

    def empty_moments(self) -> Tensor:
        """Return zeros of the form that `moments_of` returns."""
        raise TypeError(f"{type(self).__name__} takes factor sums, not rows")

    @abstractmethod
    def multiply(self, matrices: Float[Tensor, "S M K"]) -> Float[Tensor, "S M K"]:
        """Multiply the undamped blocks with matrices."""

    @abstractmethod
    def solve(
        self,
        matrices: Float[Tensor, "s M K"],
        damping: float,
        own: slice,
        out: Float[Tensor, "s M K"],
    ) -> None:
        """Write (F + λ)⁻¹ times matrices to `out`.

        Args:
            matrices: One for each chosen entry of the stack.
            damping: λ; kinds that have it in their factors already take it from there.
            own: The chosen entries.
            out: Where the solution goes; not the matrices themselves.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved, by name, with the S blocks in front or for the only one."""

    @abstractmethod
    def averages(self) -> list[Tensor]:
        """Return the moving averages, which decay."""

    @abstractmethod
    def sketch(self, probe: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return each average times the few vectors that `probe` gives for it, or its sum."""

    def factor(
        self, damping: float, entries: Sequence[int], sample: Tensor | None = None
    ) -> dict[int, int]:
        """Prepare `solve` from the present averages.

        Args:
            damping: λ > 0.
            entries: Entries of the stack to be renewed.
            sample: Matrices like those to be solved for, on which approximate products are tried.

        Returns:
            A status for each: 0 in its own precision, 1 in float64, 2 with more damping, 3 not at
            all (the old factors stay); `REPLACED` more where Newton-Schulz was left to Cholesky.
        """
        del damping, sample
        return dict.fromkeys(entries, 0)

    def renewed(self, entries: Sequence[int]) -> None:
        """Note that the factors of some entries are new, whichever process computed them."""
        del entries

    def shared(self) -> list[Tensor]:
        """Return what one process computes in `factor` for all, entry by entry of the stack."""
        return []
