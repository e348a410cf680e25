"""The interfaces of a back-end and of a treatment of the model at each point."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kobai.landscape.backends.data import Chunk
from kobai.landscape.backends.passes import Point, Reduce


class Backend(abc.ABC):
    """Computes outputs at points and hands them on chunk by chunk.

    Attributes:
        name: What it is called in notes.
    """

    name: str

    @abc.abstractmethod
    def sums(self, points: Sequence[Point], chunks: Sequence[Chunk], reduce: Reduce) -> Tensor:
        """Add up over chunks what `reduce` makes of them at every point, (K, sums), on the device.

        Called without gradients and inside `kobai.problem.pure`.
        """


class Treatment(abc.ABC):
    """Changes how a model computes while the plain loop runs, and follows it from point to point.

    Attributes:
        name: What it is called in notes.
    """

    name: str

    @abc.abstractmethod
    def during(self) -> contextlib.AbstractContextManager[Any]:
        """Open the treatment of the model; it is as before when this closes."""

    @abc.abstractmethod
    def move(self, point: Point, parameters: Mapping[str, Tensor], chunks: Sequence[Chunk]) -> None:
        """Treat the model at a point, before it is run there."""


@contextlib.contextmanager
def other_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules compute something else for a while; they get their own `forward` back."""
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
