"""When K-FAC's statistics and inverses are renewed, and where.

When: at fixed intervals, or as they grow stale. Where: in the step itself, on a stream beside the
training (`kobai.optim.kfac.side_stream`), or shared out between processes
(`kobai.optim.kfac.distribution`).

Staleness is measured on sketches: every factor times a few fixed random vectors. The mean square of
a sketch of a difference is the square of its Frobenius norm, so that sketches tell how far a matrix
has moved, turned or scaled, at the cost of a product with a vector and the memory of one.

- *Inverses* are stale when the averages have moved by more than `STALE` of their norm since the
  inversion, or the damping has: they are then recomputed at once.
- *Statistics* are a moving average of noisy matrices. Each update brings an innovation, new matrix
  less average. Pure noise has innovations without a memory, as in a Kalman filter that is tuned;
  averages that lag behind have innovations that point the same way again and again. The inner
  product of two successive ones, over the square of the average's norm, is the square of the
  lag: noise drops out.

Intervals are halved where something was stale, doubled where it was fresh, and never grow beyond
ten times the fixed ones; at the start they are short anyway, see `due`.

Source of the test for whiteness: Mehra 1970, On the identification of variances and adaptive Kalman
filtering.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from kobai.curvature.blocks.interface import Inversions, past_weight
from kobai.optim.kfac.distribution import ranks, renew_stack, shared_renewal
from kobai.optim.kfac.preconditioner import Preconditioner
from kobai.optim.kfac.settings import INVERSE_DENSITY, STATISTICS_DENSITY, KFACSettings, due
from kobai.optim.kfac.side_stream import SideStream
from kobai.optim.kfac.stack import Stack, waits

Every = int | Literal["auto"]
"""Steps between two renewals, or "auto"."""

STALE = 0.3
"""Relative change above which something is renewed more often."""

FRESH = 0.1
"""Relative change below which it is renewed less often."""

_FIRST = {"statistics": 10, "inverse": 100}
"""Intervals that "auto" begins with."""

_LONGEST = 10
"""Growth of an interval, in all."""

_VECTORS = 4
"""Random vectors of a sketch: a mean over blocks and vectors, not each block's, is looked at."""


@dataclasses.dataclass(slots=True)
class Interval:
    """Steps from one renewal to the next.

    Attributes:
        every: Most of them, at present.
        measured: Whether they follow staleness.
        longest: What `every` never exceeds.
        last: Step of the last renewal, or None.
        staleness: What was measured last.
    """

    every: int
    measured: bool
    longest: int
    last: int | None = None
    staleness: float = 0.0

    def adapt(self, step: int, staleness: float) -> None:
        """Halve or double the interval by what was measured over the one that ends now."""
        self.staleness = staleness
        if not self.measured or self.last is None:
            return
        passed = max(1, step - self.last)
        if staleness > STALE:
            self.every = max(1, min(self.every, passed) // 2)
        elif staleness < FRESH and passed >= self.every:
            self.every = min(self.longest, 2 * self.every)


def interval(name: str, every: Every) -> Interval:
    """Return the interval of "statistics" or "inverse" before the first step."""
    measured = isinstance(every, str)
    steps = _FIRST[name] if measured else every
    return Interval(every=steps, measured=measured, longest=_LONGEST * steps)


@final
class Refresh:
    """Decides when statistics and inverses are due, renews inverses, and remembers what that takes.

    Args:
        settings: The intervals, and whether processes share the work.
    """

    def __init__(self, settings: KFACSettings) -> None:
        self.statistics = interval("statistics", settings.statistics_every)
        self.inverse = interval("inverse", settings.inverse_every)
        self.distributed = settings.distributed
        self.side: SideStream | None = None
        """Where accelerators compute inverses; made when it is first needed."""
        self._averages: list[Tensor] = []
        self._innovations: list[Tensor] = []
        self._inverted: list[Tensor] = []
        self._damping = 0.0
        self._updates = 0
        self._vectors: dict[tuple[Any, ...], Tensor] = {}

    def statistics_due(self, step: int) -> bool:
        """Whether a step gathers statistics."""
        own = self.statistics
        return due(step, own.last, own.every, STATISTICS_DENSITY)

    def inverse_due(self, step: int, damping: float) -> bool:
        """Whether a step that has new statistics recomputes the inverses."""
        own = self.inverse
        if due(step, own.last, own.every, INVERSE_DENSITY):
            return True
        return own.measured and (
            own.staleness > STALE or abs(damping - self._damping) > STALE * self._damping
        )

    def renew(self, blocks: Preconditioner, damping: Callable[[int], float]) -> Inversions:
        """Recompute all inverses (or eigenbases) from the averages.

        On a device Cholesky factors are computed beside the training; of several processes each
        computes its share.

        Args:
            blocks: Those of the optimizer.
            damping: λ by the index of the parameter group.
        """
        found = Inversions(failed=self.failed())
        stacks = [stack for stack in blocks.stacks if stack.block.factored]
        if self.distributed and ranks() > 1:
            return found + shared_renewal(stacks, damping)
        beside = self._beside(stacks)
        if beside and self.side is not None:
            self.side.launch(beside, damping)
        for stack in stacks:
            if stack not in beside:
                found += renew_stack(stack, damping)
        return found

    def _beside(self, stacks: Sequence[Stack]) -> list[Stack]:
        """Choose the stacks that a stream beside the training renews: on accelerators, if any.

        Tables and the like are renewed in the foreground wherever that is, and so is all after a
        renewal in the background that failed.
        """
        together = [stack for stack in stacks if stack.block.shared()]
        if not together or not waits(together[0].momentum):
            return []
        self.side = self.side or SideStream()
        retry, self.side.retry = self.side.retry, False
        return together if not retry and self.side.suits(together) else []

    def take_over(self) -> None:
        """Replace inverses by those of a renewal that was launched beside, if there is one."""
        if self.side is not None:
            self.side.take_over()

    def failed(self) -> int:
        """Count blocks that a renewal beside could not invert; forget them."""
        return 0 if self.side is None else self.side.failed()

    @torch.no_grad()
    def updated(self, step: int, blocks: Preconditioner) -> None:
        """Note an update of the statistics, and measure what it says where that is asked for."""
        if self.statistics.measured or self.inverse.measured:
            self._measure(step, self._sketches(blocks))
        self.statistics.last = step

    def inverted(self, step: int, damping: float) -> None:
        """Note that inverses were recomputed."""
        self.inverse.adapt(step, self.inverse.staleness)
        self.inverse.last, self.inverse.staleness = step, 0.0
        self._inverted, self._damping = self._averages, damping

    def diagnostics(self) -> dict[str, float]:
        """Intervals and staleness of what is measured."""
        found: dict[str, float] = {}
        for name, own in (("statistics", self.statistics), ("inverse", self.inverse)):
            if own.measured:
                found[f"{name}_interval"] = own.every
                found[f"{name}_staleness"] = own.staleness
        return found

    def _measure(self, step: int, now: list[Tensor]) -> None:
        self._updates += 1
        before, earlier = self._averages, self._innovations
        self._averages, self._innovations = now, []
        squares = []
        if alike(now, before):
            gain = 1 - past_weight(self._updates)
            self._innovations = [(a - b) / gain for a, b in zip(now, before, strict=True)]
            if alike(self._innovations, earlier):
                squares.append(_mean_ratio(self._innovations, earlier, now))
        if alike(now, self._inverted):
            moved = [a - b for a, b in zip(now, self._inverted, strict=True)]
            squares.append(_mean_ratio(moved, moved, now))
        # One number from the device for both, next to those that tell whether sums are finite.
        found = [math.sqrt(max(0.0, s)) for s in torch.stack(squares).tolist()] if squares else []
        if found and alike(now, self._inverted):
            self.inverse.staleness = found.pop()
        if found:
            self.statistics.adapt(step, found.pop())

    def _sketches(self, blocks: Preconditioner) -> list[Tensor]:
        """Each matrix of the averages times a few vectors; of diagonals their sum."""
        return [sketch for stack in blocks.stacks for sketch in stack.block.sketch(self._probe)]

    def _probe(self, like: Tensor) -> Tensor:
        key = (like.shape[-1], like.dtype, like.device)
        if key not in self._vectors:
            signs = torch.randint(
                0, 2, (like.shape[-1], _VECTORS), generator=torch.Generator().manual_seed(0)
            )
            self._vectors[key] = (2.0 * signs - 1.0).to(like)
        return self._vectors[key]

    def export(self) -> dict[str, Any]:
        """What is to be saved."""
        return {
            "statistics": dataclasses.asdict(self.statistics),
            "inverse": dataclasses.asdict(self.inverse),
            "averages": list(self._averages),
            "innovations": list(self._innovations),
            "inverted": list(self._inverted),
            "damping": self._damping,
            "updates": self._updates,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Put back what `export` gave; intervals given as numbers stay as they were given."""
        for name, own in (("statistics", self.statistics), ("inverse", self.inverse)):
            was = Interval(**saved[name])
            own.last, own.staleness = was.last, was.staleness
            if own.measured and was.measured:
                own.every = was.every
        self._averages = [sketch.clone() for sketch in saved["averages"]]
        self._innovations = [sketch.clone() for sketch in saved["innovations"]]
        self._inverted = [sketch.clone() for sketch in saved["inverted"]]
        self._damping, self._updates = saved["damping"], saved["updates"]


def alike(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Say whether two lists of sketches are of the same matrices; empty ones are of none."""
    return bool(one) and [(s.shape, s.dtype, s.device) for s in one] == [
        (s.shape, s.dtype, s.device) for s in other
    ]


def _mean_ratio(a: Sequence[Tensor], b: Sequence[Tensor], unit: Sequence[Tensor]) -> Tensor:
    """Mean over matrices of ⟨a, b⟩/⟨unit, unit⟩, in float64; vanishing ones do not count."""
    products = torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)])
    norms = torch.stack([u.double().square().sum() for u in unit])
    ratios = torch.where(norms > 0, products / norms.clamp(min=1e-300), 0.0)
    return ratios.mean()
