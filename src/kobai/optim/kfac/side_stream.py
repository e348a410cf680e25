"""Inverses that an accelerator computes beside the training, taken over a step later.

A factorisation keeps few of a device's units busy. Here it is launched on a stream of its own at
the end of one step's statistics, runs beside the forward and backward pass of the next, and its
results are taken over when that next step begins to move; the training's stream waits for them, the
host never does. Whether a factorisation was good is decided on the device (where not, the old
inverse stays) and read by the host at the next renewal, by when it is long there. What had failed
then makes that renewal go up the ladder of `kobai.linalg`, which reads numbers.

Layers that have no inverse yet take theirs over at once.
"""

import contextlib
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from kobai.curvature.blocks.kronecker import KroneckerFactors
from kobai.optim.blocks import Blocks
from kobai.optim.kronecker_stack import KroneckerStack


@final
class SideRefresh:
    """Renewals in the background.

    Attributes:
        retry: Whether the next renewal is to go up the ladder.
    """

    def __init__(self) -> None:
        self.retry = False
        self._stream: torch.cuda.Stream | None = None
        self._pending: list[tuple[KroneckerStack, KroneckerFactors, Tensor]] = []
        self._failed: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def suits(self, blocks: Blocks) -> bool:
        """Whether a renewal needs nothing but Cholesky factors of blocks that have statistics."""
        return all(
            isinstance(stack, KroneckerStack)
            and stack.method == "cholesky"
            and len(stack.ready()) == stack.size
            for stack in blocks.stacks
        )

    def failed(self) -> int:
        """How many blocks' factorisations of the last renewal were not good; forgets them."""
        if self._failed is None:
            return 0
        if self._copied is not None:
            self._copied.synchronize()
        count = int(self._failed)
        self._failed = self._copied = None
        self.retry |= count > 0
        return count

    def launch(self, blocks: Blocks, damping: Callable[[int], float]) -> None:
        """Start a renewal.

        Args:
            blocks: Those that `suits`.
            damping: λ by the index of the parameter group.
        """
        stacks = [stack for stack in blocks.stacks if isinstance(stack, KroneckerStack)]
        if not stacks:
            return
        with self._beside(stacks[0].momentum.device):
            for stack in stacks:
                inverses, good = stack.unread_inverses(damping(stack.group))
                self._pending.append((stack, inverses, good))
        if not all(span.inverted for stack in stacks for span in stack.spans):
            self.take_over()

    def take_over(self) -> None:
        """Replace the inverses by those of a renewal that was launched, if there is one."""
        if not self._pending:
            return
        if self._stream is not None:
            here = torch.cuda.current_stream(self._stream.device)
            here.wait_stream(self._stream)
            for _, inverses, good in self._pending:
                for tensor in (inverses.inputs, inverses.outputs, good):
                    tensor.record_stream(here)
        flags = torch.stack([(~good).sum() for _, _, good in self._pending]).sum()
        for stack, inverses, good in self._pending:
            stack.take_over(inverses, good)
        self._pending.clear()
        if self._stream is None:
            self._failed = flags
            return
        self._failed = torch.empty((), dtype=flags.dtype, pin_memory=True)
        self._failed.copy_(flags, non_blocking=True)
        self._copied = torch.cuda.Event()
        self._copied.record()

    @contextlib.contextmanager
    def _beside(self, device: torch.device):
        """Work on the side stream, after what the present stream has been given."""
        if device.type != "cuda":
            yield
            return
        if self._stream is None or self._stream.device != device:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            yield
