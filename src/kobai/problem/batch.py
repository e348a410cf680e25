"""A batch: some examples' inputs with their targets, moved, cut and indexed as one thing."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def map_inputs(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Apply a function to every tensor of the inputs, keeping their form."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {name: function(value) for name, value in inputs.items()}
    return tuple(function(value) for value in inputs)


def input_tensors(inputs: Inputs) -> tuple[Tensor, ...]:
    """All tensors of the inputs, in order."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    if isinstance(inputs, Mapping):
        return tuple(inputs.values())
    return tuple(inputs)


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """Inputs and targets of some examples; the example axis comes first everywhere.

    Attributes:
        inputs: A tensor (N, …), a tuple of such (positional arguments of the model) or a mapping
            of such (keyword arguments of the model).
        targets: What the likelihood compares outputs with, shape (N, …).

    Raises:
        ValueError: If the tensors disagree on N or there is no example.
        TypeError: If inputs or targets are not tensors.
    """

    inputs: Inputs
    targets: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, Tensor | tuple | Mapping):
            raise TypeError(
                "inputs are a tensor, a tuple or a mapping of tensors, got "
                f"{type(self.inputs).__name__}; convert arrays by torch.as_tensor first"
            )
        tensors = input_tensors(self.inputs)
        for tensor in (*tensors, self.targets):
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"a batch holds tensors, got {type(tensor).__name__}; "
                    "convert arrays by torch.as_tensor first"
                )
        if not tensors:
            raise ValueError("a batch needs at least one input tensor, got none")
        sizes = {int(t.shape[0]) if t.ndim else -1 for t in (*tensors, self.targets)}
        if len(sizes) != 1:
            raise ValueError(
                "inputs and targets must agree on the number of examples (first axis), got shapes "
                f"{[tuple(t.shape) for t in tensors]} and {tuple(self.targets.shape)}"
            )
        if sizes == {0} or sizes == {-1}:
            raise ValueError("a batch needs at least one example along its first axis, got none")

    @property
    def size(self) -> int:
        """Number of examples N."""
        return int(self.targets.shape[0])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Batch":
        """Move to a device; `dtype` applies to floating-point tensors only."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        return Batch(map_inputs(move, self.inputs), move(self.targets))

    def take(self, index: Tensor | slice) -> "Batch":
        """The examples at the given positions, in that order."""
        return Batch(map_inputs(lambda tensor: tensor[index], self.inputs), self.targets[index])

    def chunks(self, size: int) -> Iterator["Batch"]:
        """Consecutive pieces of at most `size` examples (views, no copies)."""
        if size < 1:
            raise ValueError(f"chunk size must be at least 1, got {size}")
        if size >= self.size:
            yield self
            return
        for start in range(0, self.size, size):
            yield self.take(slice(start, start + size))
