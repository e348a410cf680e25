"""Pure steps on data sets: draw a test set, keep a subset, scale, standardise."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from kobai.data.splits import DataError, DataSplits, Standardization

__all__ = ["draw_test", "scale_pixels", "standardize", "subset"]


def draw_test(
    labels: Tensor, fraction: float, *, stratify: bool, generator: Generator
) -> tuple[Int[Tensor, " A"], Int[Tensor, " B"]]:
    """Divide examples into training and test indices.

    Args:
        labels: Targets (N, …); class labels (N,) where `stratify`.
        fraction: Share of the examples to test on, in (0, 1).
        stratify: Give every class the same share, rounded, always keeping one for training.
        generator: Draws who goes where.

    Returns:
        Indices to train on and to test on, each ascending: the order of the source is kept.

    Raises:
        DataError: If the fraction is outside (0, 1) or leaves one of the two without examples.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the test fraction is {fraction}; expected a number between 0 and 1")
    groups = _groups(labels, by_class=stratify, generator=generator)
    drawn = [group[: min(len(group) - 1, round(fraction * len(group)))] for group in groups]
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    in_test[torch.cat(drawn)] = True
    if not in_test.any():
        raise DataError(
            f"a test fraction of {fraction} of {len(labels)} examples leaves no test examples; "
            "give more data, a larger test_fraction, or test_fraction=0 for no test set"
        )
    return (~in_test).nonzero()[:, 0], in_test.nonzero()[:, 0]


def subset(
    splits: DataSplits,
    *,
    train: int | None = None,
    test: int | None = None,
    generator: Generator | None,
) -> DataSplits:
    """Keep at most so many examples, as evenly over the classes as they allow.

    Args:
        splits: Any data set.
        train: At most so many training examples; None keeps all.
        test: At most so many test examples; None keeps all.
        generator: Draws the examples; None takes the first ones of each class.

    Returns:
        The smaller data set, in the order of the source. Classes stay as they are, also where a
        very small subset has no example of one. Regression takes the first or drawn examples.

    Raises:
        DataError: If a number is not positive.
    """
    kept = {}
    for split, count in (("train", train), ("test", test)):
        data = getattr(splits, split)
        if count is None or data is None:
            continue
        if count < 1:
            raise DataError(f"a limit of {count} {split} examples; expected at least 1")
        if count < len(data[0]):
            by_class = splits.likelihood == "categorical" and data[1].ndim == 1
            groups = _groups(data[1], by_class=by_class, generator=generator)
            # The firsts of all classes come before the seconds of any: cut anywhere, it is even.
            rank = torch.cat([torch.arange(len(group)) for group in groups])
            order = torch.cat(groups)[torch.argsort(rank, stable=True)]
            chosen = order[:count].sort().values
            kept[split] = (data[0][chosen], data[1][chosen])
    return replace(splits, **kept) if kept else splits


def scale_pixels(splits: DataSplits) -> DataSplits:
    """Turn 8-bit inputs into float32 in [0, 1] (divided by 255) and booleans into 0 and 1."""

    def scale(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x = data[0].to(torch.float32)
        return (x.div_(255) if data[0].dtype == torch.uint8 else x), data[1]

    if splits.train[0].dtype not in {torch.uint8, torch.bool}:
        return splits
    return replace(
        splits, train=scale(splits.train), test=None if splits.test is None else scale(splits.test)
    )


def standardize(splits: DataSplits) -> DataSplits:
    """Shift and scale the inputs to mean 0 and variance 1 over the training examples.

    Statistics are per channel for inputs (N, C, …) and per feature for inputs (N, D); the test
    inputs go through the same map. Targets are left alone. Needs memory for one more copy.

    Returns:
        New tensors; the map is in `standardization`.

    Raises:
        DataError: If the inputs are integers (tokens), or are standardised already.
    """
    x = splits.train[0]
    if not x.is_floating_point():
        raise DataError(f"{splits.name}: inputs are {x.dtype}; only real inputs are standardised")
    if splits.standardization is not None:
        raise DataError(f"{splits.name}: the inputs are standardised already")
    axes = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0)
    std = torch.where(variance > 0, variance.sqrt(), 1.0)

    def apply(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        shape = (-1, *(1,) * (x.ndim - 2))
        return (data[0] - mean.reshape(shape)).div_(std.reshape(shape)), data[1]

    return replace(
        splits,
        train=apply(splits.train),
        test=None if splits.test is None else apply(splits.test),
        standardization=Standardization(mean=mean, std=std),
    )


def _groups(
    labels: Tensor, *, by_class: bool, generator: Generator | None
) -> tuple[Int[Tensor, " n"], ...]:
    """Indices of the examples of each class (or of all), in order or shuffled."""
    count = len(labels)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    if not by_class:
        return (order,)
    order = order[torch.argsort(labels[order], stable=True)]
    return tuple(group for group in order.split(torch.bincount(labels).tolist()) if len(group))
