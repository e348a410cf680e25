"""Where a problem's examples come from: tensors in memory, or a data set that is streamed."""

import abc
import dataclasses
from collections.abc import Collection, Iterator
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from kobai.problem.batch import Batch, input_tensors, map_inputs


class Examples(abc.ABC):
    """One split of the data, in a fixed order.

    Attributes:
        size: Number of examples.
    """

    size: int

    @abc.abstractmethod
    def batches(self, chunk: int) -> Collection[Batch]:
        """All examples in order, in batches of at most `chunk`; can be iterated again and again."""

    @abc.abstractmethod
    def minibatches(self, size: int, *, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch: every example once, in an order drawn from the generator."""


@final
class TensorExamples(Examples):
    """Examples held in memory as tensors.

    Args:
        batch: All of them.
    """

    def __init__(self, batch: Batch) -> None:
        self.all = batch
        self.size = batch.size

    def batches(self, chunk: int) -> Collection[Batch]:
        """Views of consecutive examples."""
        return tuple(self.all.chunks(chunk))

    def minibatches(self, size: int, *, generator: torch.Generator) -> Iterator[Batch]:
        """Shuffled minibatches; the last one may be smaller."""
        order = torch.randperm(self.size, generator=generator, device=generator.device)
        order = order.to(self.all.targets.device)
        for start in range(0, self.size, size):
            yield self.all.take(order[start : start + size])

    def to(self, device: torch.device | str) -> "TensorExamples":
        """All examples on a device."""
        return TensorExamples(self.all.to(device))


@dataclasses.dataclass(frozen=True)
class _Pass(Collection[Batch]):
    """Consecutive batches of a data set, loaded anew at every iteration."""

    dataset: Dataset[Any]
    indices: tuple[int, ...]
    chunk: int
    collate: Any

    def __len__(self) -> int:
        return -(-len(self.indices) // self.chunk)

    def __contains__(self, batch: object) -> bool:
        return any(batch is other for other in self)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.indices), self.chunk):
            items = [self.dataset[i] for i in self.indices[start : start + self.chunk]]
            yield as_batch(self.collate(items))


@final
class StreamedExamples(Examples):
    """Examples of a map-style data set, loaded when they are needed.

    Args:
        dataset: Has `__len__` and `__getitem__` giving (input, target).
        collate: Joins a list of items to a batch.
        indices: The positions that belong to this split, in order.
    """

    def __init__(
        self, dataset: Dataset[Any], collate: Any = default_collate, indices: Any = None
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.indices = tuple(range(len(dataset)) if indices is None else indices)  # type: ignore[arg-type]
        self.size = len(self.indices)
        if self.size == 0:
            raise ValueError("the data set is empty; a split needs at least one example")

    def batches(self, chunk: int) -> Collection[Batch]:
        """Consecutive examples, loaded at every iteration."""
        return _Pass(self.dataset, self.indices, chunk, self.collate)

    def minibatches(self, size: int, *, generator: torch.Generator) -> Iterator[Batch]:
        """Shuffled minibatches; the last one may be smaller."""
        order = torch.randperm(self.size, generator=generator, device=generator.device).tolist()
        yield from _Pass(self.dataset, tuple(self.indices[i] for i in order), size, self.collate)


def as_batch(value: Any) -> Batch:
    """Make a `Batch` of what a loader or a user gives: a batch, or a pair (inputs, targets).

    Raises:
        TypeError: If it is something else.
    """
    if isinstance(value, Batch):
        return value
    if isinstance(value, tuple | list) and len(value) == 2:
        return Batch(*value)
    raise TypeError(
        "data must be pairs (inputs, targets) or a kobai Batch, got "
        f"{type(value).__name__}; give a Dataset or DataLoader whose items are such pairs"
    )


def as_examples(data: Any, *, name: str) -> Examples:
    """Turn tensors, a data set or a data loader into examples.

    A loader's data set and collate function are used in the data set's own order: shuffling belongs
    to training, and a full-batch quantity must not depend on it.

    Args:
        data: (inputs, targets), a `Batch`, a map-style `Dataset` or a `DataLoader` of one.
        name: The split's name, for messages.

    Raises:
        ValueError: If inputs hold NaN or infinite values.
        TypeError: If the data cannot be indexed.
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset):
            raise TypeError(
                f"{name}: an iterable-style data set has no fixed set of examples; "
                "collect it into tensors or use a map-style data set"
            )
        return StreamedExamples(data.dataset, data.collate_fn)
    if isinstance(data, torch.utils.data.TensorDataset):
        data = Batch(tuple(data.tensors[:-1]), data.tensors[-1])
        if len(input_tensors(data.inputs)) == 1:
            data = Batch(input_tensors(data.inputs)[0], data.targets)
    elif isinstance(data, Dataset):
        return StreamedExamples(data)
    batch = as_batch(data)
    for tensor in input_tensors(batch.inputs):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor.flatten(1))).any(1).sum())
            raise ValueError(
                f"{name}: the inputs of {bad} of {batch.size} examples hold NaN or infinite "
                "values; clean the data first"
            )
    return TensorExamples(batch)


def split_off(
    examples: Examples, fraction: float, *, generator: torch.Generator
) -> tuple[Examples, Examples]:
    """Draw a fraction of the examples as a second split, without overlap.

    Raises:
        ValueError: If either part would be empty.
    """
    count = round(examples.size * fraction)
    if not 0.0 < fraction < 1.0 or count < 1 or count >= examples.size:
        raise ValueError(
            f"the validation fraction must leave examples on both sides, got {fraction} of "
            f"{examples.size}"
        )
    order = torch.randperm(examples.size, generator=generator, device=generator.device).cpu()
    # Sorted, so that each part keeps the data's own order.
    drawn, kept = order[:count].sort().values, order[count:].sort().values
    if isinstance(examples, TensorExamples):
        return (
            TensorExamples(examples.all.take(kept)),
            TensorExamples(examples.all.take(drawn)),
        )
    assert isinstance(examples, StreamedExamples)
    return tuple(  # type: ignore[return-value]
        StreamedExamples(
            examples.dataset, examples.collate, [examples.indices[i] for i in part.tolist()]
        )
        for part in (kept, drawn)
    )


def first_example(examples: Examples) -> Batch:
    """The first example alone, as a batch of one."""
    batch = next(iter(examples.batches(1)))
    return Batch(map_inputs(Tensor.detach, batch.inputs), batch.targets)
