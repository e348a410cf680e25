"""The training examples in minibatches, epoch after epoch, from any position."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from kobai.layers import normalises_batches
from kobai.problem import Batch, Problem


def uses_batch_statistics(model: nn.Module) -> bool:
    """Whether a module normalises by the statistics of a minibatch in training mode."""
    return any(normalises_batches(part) for part in model.modules())


@runtime_checkable
class Augment(Protocol):
    """Transforms a minibatch before its step, such as a `SelfPacedAugmentation`."""

    def __call__(
        self, x: Tensor, y: Tensor, *, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets to train on in place of these; all draws are from the generator."""
        ...


@final
class Minibatches:
    """Endless shuffled minibatches whose position can be saved and taken up again.

    Each epoch is one draw from the generator. A last minibatch of a single example is left out if
    the model normalises by minibatch statistics, which one example does not have; the shuffle makes
    it another example each epoch.

    Args:
        problem: Its training data are served.
        batch_size: Number of an epoch, from 0, to examples a minibatch in it.
        generator: Draws the order of every epoch, and what `augment` draws.
        augment: What every minibatch passes through; None leaves it as it is.
    """

    def __init__(
        self,
        problem: Problem,
        batch_size: Callable[[int], int],
        *,
        generator: torch.Generator,
        augment: Augment | None = None,
    ) -> None:
        self._augment = augment
        self._problem = problem
        self._size = batch_size
        self._generator = generator
        self._needs_two = uses_batch_statistics(problem.model)
        self._epoch, self._position = 0, 0
        self._epoch_start = generator.get_state()
        self._batches: Iterator[Batch] | None = None

    def batch_size(self, epoch: int) -> int:
        """Examples a minibatch in an epoch, at most as many as there are."""
        return min(self._size(epoch), self._problem.train.size)

    def leaves_one_out(self, epoch: int) -> bool:
        """Whether an epoch ends with a minibatch of one example that cannot be used."""
        full, rest = divmod(self._problem.train.size, self._size(epoch))
        return rest == 1 and full > 0 and self._needs_two

    def length(self, epoch: int) -> int:
        """Minibatches in an epoch."""
        return -(-self._problem.train.size // self._size(epoch)) - self.leaves_one_out(epoch)

    def next(self) -> Batch:
        """The next minibatch; draws a new order at the start of an epoch."""
        if self._batches is None:
            self._epoch_start = self._generator.get_state()
            self._batches = self._shuffled()
        batch = next(self._batches)
        self._position += 1
        if self._position == self.length(self._epoch):
            self._epoch, self._position, self._batches = self._epoch + 1, 0, None
        return batch if self._augment is None else self._augmented(batch, self._augment)

    def _shuffled(self) -> Iterator[Batch]:
        size = self.batch_size(self._epoch)
        return self._problem.minibatches(size, generator=self._generator)

    def _augmented(self, batch: Batch, augment: Augment) -> Batch:
        if not isinstance(batch.inputs, Tensor):
            raise TypeError(
                f"augmentation takes one tensor of inputs, got {type(batch.inputs).__name__}"
            )
        return Batch(*augment(batch.inputs, batch.targets, generator=self._generator))

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position in it, and the generator at its start and now."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "epoch_start": self._epoch_start,
            "now": self._generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the position up again: draw the epoch's order anew and pass over what was used.

        Data that are streamed are loaded once more up to the position.
        """
        self._epoch, self._position = state["epoch"], state["position"]
        self._epoch_start = state["epoch_start"]
        self._batches = None
        if self._position:
            self._generator.set_state(self._epoch_start)
            self._batches = self._shuffled()
            for _ in range(self._position):
                next(self._batches)
        # Someone else, such as the optimizer, may draw from the same generator within an epoch.
        self._generator.set_state(state["now"])
