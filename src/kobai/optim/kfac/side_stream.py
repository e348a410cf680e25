"""Inverses that an accelerator computes beside the training, taken over a step later.

A factorisation keeps few of a device's units busy. Here it is launched on a stream of its own at
the end of one step's statistics, runs beside the forward and backward pass of the next, and its
results are taken over when that next step begins to move; the training's stream waits for them, the
host never does. Whether a factorisation was good is decided on the device (where not, the old
inverse stays) and read by the host at the next renewal, by when it is long there. What had failed
then has that renewal try further means (`kobai.linalg.cholesky`), which reads numbers.

Layers that have no inverse yet take theirs over at once.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from kobai.curvature.blocks import KroneckerBlock, KroneckerFactors
from kobai.optim.kfac.stack import Stack


@final
class SideStream:
    """Renewals in the background.

    Attributes:
        retry: Whether the next renewal is to be made in the foreground, by all means.
    """

    def __init__(self) -> None:
        self.retry = False
        self._stream: torch.cuda.Stream | None = None
        self._pending: list[tuple[Stack, KroneckerBlock, KroneckerFactors, Tensor]] = []
        self._failed: Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def suits(self, stacks: Sequence[Stack]) -> bool:
        """Whether renewing needs nothing but Cholesky factors of blocks that have statistics."""
        return all(
            isinstance(stack.block, KroneckerBlock)
            and stack.block.method == "cholesky"
            and len(stack.ready()) == stack.block.shape[0]
            for stack in stacks
        )

    def failed(self) -> int:
        """Count blocks whose factorisations of the last renewal were not good; forget them."""
        if self._failed is None:
            return 0
        if self._copied is not None:
            self._copied.synchronize()
        count = int(self._failed)
        self._failed = self._copied = None
        self.retry |= count > 0
        return count

    def launch(self, stacks: Sequence[Stack], damping: Callable[[int], float]) -> None:
        """Start a renewal.

        Args:
            stacks: Those that `suits`.
            damping: λ by the index of the parameter group.
        """
        if not stacks:
            return
        with self._beside(stacks[0].momentum.device):
            for stack in stacks:
                assert isinstance(stack.block, KroneckerBlock)
                inverses, good = stack.block.unread_inverses(damping(stack.group))
                self._pending.append((stack, stack.block, inverses, good))
        if not all(span.inverted for stack in stacks for span in stack.spans):
            self.take_over()

    def take_over(self) -> None:
        """Replace the inverses by those of a renewal that was launched, if there is one."""
        if not self._pending:
            return
        if self._stream is not None:
            here = torch.cuda.current_stream(self._stream.device)
            here.wait_stream(self._stream)
            for _, _, inverses, good in self._pending:
                for tensor in (inverses.inputs, inverses.outputs, good):
                    tensor.record_stream(here)
        flags = torch.stack([(~good).sum() for _, _, _, good in self._pending]).sum()
        for stack, block, inverses, good in self._pending:
            block.replace(inverses, good)
            stack.renewed(dict.fromkeys(range(block.shape[0]), 0))
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
