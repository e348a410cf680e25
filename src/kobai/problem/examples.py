"""Sources of a problem's examples: tensors in memory, or a data set that is streamed."""

import abc
import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any, final

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from kobai.problem.batch import Batch, input_tensors


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
    def first(self, count: int) -> Batch:
        """The first examples, at most `count`, as one batch; leaves the global random state."""

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

    def first(self, count: int) -> Batch:
        """Views of the first examples."""
        return next(self.all.chunks(count))

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
    """Consecutive batches of a data set, loaded anew at every iteration.

    A fixed pass is to give the same batches every time, so reading them may draw nothing.
    """

    dataset: Any
    indices: tuple[int, ...]
    chunk: int
    collate: Any
    inspect: Callable[[Batch], None] | None
    fixed: bool

    def __len__(self) -> int:
        return -(-len(self.indices) // self.chunk)

    def __contains__(self, batch: object) -> bool:
        return any(batch is other for other in self)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.indices), self.chunk):
            before = torch.get_rng_state() if self.fixed else None
            items = [self.dataset[i] for i in self.indices[start : start + self.chunk]]
            batch = as_batch(self.collate(items))
            if before is not None and not torch.equal(before, torch.get_rng_state()):
                torch.set_rng_state(before)
                raise ValueError(
                    "the data set draws random numbers as it is read (augmentation?), so an "
                    "objective over it is no function; give the same data without them"
                )
            if self.inspect is not None:
                self.inspect(batch)
            yield batch


@final
class StreamedExamples(Examples):
    """Examples of a map-style data set, loaded when they are needed.

    Args:
        dataset: Anything with `__len__` and `__getitem__` giving (input, target).
        collate: Joins a list of items to a batch.
        indices: The positions that belong to this split, in order.
        inspect: Called with every batch that is loaded; raises `ValueError` if it is no good.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Any = default_collate,
        indices: Any = None,
        inspect: Callable[[Batch], None] | None = None,
    ) -> None:
        if indices is None and not hasattr(dataset, "__len__"):
            raise TypeError(
                f"{type(dataset).__name__} has no length, so it is no fixed set of examples; "
                "give it __len__, or collect the examples into tensors"
            )
        self.dataset = dataset
        self.collate = collate
        self.inspect = inspect
        self.indices = tuple(range(len(dataset)) if indices is None else indices)
        self.size = len(self.indices)
        if self.size == 0:
            raise ValueError("the data set is empty; a split needs at least one example")

    def batches(self, chunk: int) -> Collection[Batch]:
        """Consecutive examples, loaded at every iteration."""
        if chunk < 1:
            raise ValueError(f"chunk size must be at least 1, got {chunk}")
        return _Pass(self.dataset, self.indices, chunk, self.collate, self.inspect, fixed=True)

    def minibatches(self, size: int, *, generator: torch.Generator) -> Iterator[Batch]:
        """Shuffled minibatches; the last one may be smaller."""
        order = torch.randperm(self.size, generator=generator, device=generator.device).tolist()
        chosen = tuple(self.indices[i] for i in order)
        yield from _Pass(self.dataset, chosen, size, self.collate, self.inspect, fixed=False)

    def first(self, count: int) -> Batch:
        """The first examples, loaded now; a data set may draw random numbers for it."""
        with torch.random.fork_rng(devices=[]):
            one = _Pass(self.dataset, self.indices[:count], count, self.collate, None, fixed=False)
            return next(iter(one))

    def inspected(self, inspect: Callable[[Batch], None]) -> "StreamedExamples":
        """The same examples, every loaded batch of which is inspected."""
        return StreamedExamples(self.dataset, self.collate, self.indices, inspect)


def as_batch(value: Any) -> Batch:
    """Make a `Batch` of what a loader or a user gives: a batch, or a pair (inputs, targets).

    Raises:
        TypeError: If it is something else.
    """
    if isinstance(value, Batch):
        return value
    if isinstance(value, tuple | list) and len(value) == 2:
        inputs, targets = value
        # Torch's collate function makes lists of tuples.
        return Batch(tuple(inputs) if isinstance(inputs, list) else inputs, targets)
    raise TypeError(
        "data must be pairs (inputs, targets) or a kobai Batch, got "
        f"{type(value).__name__}; give a Dataset or DataLoader whose items are such pairs"
    )


def as_examples(data: Any, *, name: str) -> Examples:
    """Turn tensors, a data set or a data loader into examples.

    A loader's data set and collate function are used in the data set's own order: shuffling belongs
    to training, and a full-batch quantity must not depend on it. Its batch size, workers and
    `drop_last` play no part.

    Args:
        data: (inputs, targets), a `Batch`, a map-style `Dataset` or a `DataLoader` of one.
        name: The split's name, for messages.

    Raises:
        ValueError: If inputs hold NaN or infinite values, or there are no examples.
        TypeError: If the data cannot be indexed.
    """
    if isinstance(data, Examples):
        return data
    try:
        if isinstance(data, DataLoader):
            return _loader_examples(data)
        if isinstance(data, TensorDataset):
            return _tensor_examples(_whole(data))
        if isinstance(data, Dataset):
            return _dataset_examples(data)
        return _tensor_examples(as_batch(data))
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def require_finite_inputs(batch: Batch) -> None:
    """Refuse inputs with NaN or infinite values."""
    for tensor in input_tensors(batch.inputs):
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        # The extremes carry NaN and infinity, and need no mask as large as the data.
        if not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor)):
            bad = int((~torch.isfinite(tensor.reshape(batch.size, -1))).any(1).sum())
            raise ValueError(
                f"the inputs of {bad} of {batch.size} examples hold NaN or infinite "
                "values; clean the data first"
            )


def _whole(dataset: TensorDataset) -> Batch:
    *inputs, targets = dataset.tensors
    return Batch(inputs[0] if len(inputs) == 1 else tuple(inputs), targets)


def _tensor_examples(batch: Batch) -> TensorExamples:
    require_finite_inputs(batch)
    return TensorExamples(batch)


def _dataset_examples(
    dataset: Any, collate: Any = default_collate, indices: Any = None
) -> StreamedExamples:
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            "an iterable-style data set has no fixed set of examples; "
            "collect it into tensors or use a map-style data set"
        )
    return StreamedExamples(dataset, collate, indices)


def _loader_examples(loader: DataLoader[Any]) -> Examples:
    """The examples a loader visits in an epoch, in the order of its data set."""
    dataset: Any = loader.dataset
    collate = loader.collate_fn
    if isinstance(dataset, IterableDataset):
        return _dataset_examples(dataset)
    if loader.batch_size is None and loader.batch_sampler is None:
        raise TypeError(
            "a DataLoader with batch_size=None leaves batching to its data set, so single "
            "examples cannot be told apart; give a data set of single examples"
        )
    sampler: Any = loader.batch_sampler
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    indices = None
    if isinstance(sampler, SubsetRandomSampler):
        indices = sorted(int(i) for i in sampler.indices)
    elif not (
        isinstance(sampler, SequentialSampler)
        or (
            isinstance(sampler, RandomSampler)
            and not sampler.replacement
            and sampler.num_samples == len(dataset)
        )
    ):
        raise TypeError(
            f"a DataLoader that chooses its examples by a {type(sampler).__name__} has no fixed "
            "set of examples; choose them by torch.utils.data.Subset instead"
        )
    if isinstance(dataset, TensorDataset) and collate is default_collate:
        whole = _whole(dataset)
        return _tensor_examples(
            whole if indices is None else whole.take(torch.tensor(indices, dtype=torch.int64))
        )
    return _dataset_examples(dataset, collate, indices)


def split_off(
    examples: Examples, fraction: float, *, generator: torch.Generator
) -> tuple[Examples, Examples]:
    """Draw a fraction of the examples as a second split, without overlap.

    Raises:
        ValueError: If either part would be empty.
    """
    count = round(examples.size * fraction) if 0.0 < fraction < 1.0 else 0
    if count < 1 or count >= examples.size:
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
            examples.dataset,
            examples.collate,
            [examples.indices[i] for i in part.tolist()],
            examples.inspect,
        )
        for part in (kept, drawn)
    )
