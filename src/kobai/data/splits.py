"""The form of every data set: checked tensors, and the facts to build a model for them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["DataError", "DataSplits", "Standardization"]


class DataError(ValueError):
    """Data that are absent, damaged or contradictory; says what was found and what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardization:
    """The affine map that was applied to the inputs: (x − mean) / std.

    Both come from the training inputs: per channel for inputs of shape (N, C, …), per feature for
    inputs of shape (N, D). The standard deviation divides by N; where it is zero, `std` holds 1,
    so that a constant feature becomes zero.
    """

    mean: Float[Tensor, " C"]
    std: Float[Tensor, " C"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSplits:
    """A data set as tensors: a training split, perhaps a test split, and what the targets are.

    Attributes:
        name: The name it was asked for by.
        train: Inputs (N, …) and targets of the training examples.
        test: The same of the test examples, or None.
        num_classes: Number of classes K; None unless `likelihood` is "categorical".
        classes: Names of the classes, in the order of their labels; filled with "0", "1", … where
            the source has no names; empty unless `likelihood` is "categorical".
        likelihood: "categorical": targets are int64 labels (N,) in 0 … K−1. "gaussian": real
            targets (N, C). "bernoulli": targets (N, C) in [0, 1]. A name given to
            `kobai.problem.register_likelihood`: real targets (N, …).
        source: What to write beside a result, such as "CIFAR-10 (JPEG)".
        standardization: The statistics the inputs were standardised with, or None.

    Pictures are (N, channels, height, width) float32 in [0, 1] before standardisation. Inputs may
    also be integers: 8-bit pictures not yet scaled, or tokens. Construction checks everything, one
    pass over the data and no copy.

    Raises:
        DataError: On empty or unequal splits, NaN or infinite numbers, labels out of range, a
            single class, or targets that do not fit the likelihood.
    """

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor] | None
    likelihood: str
    source: str
    num_classes: int | None = None
    classes: tuple[str, ...] = ()
    standardization: Standardization | None = None

    def __post_init__(self):
        for split, data in (("train", self.train), ("test", self.test)):
            if data is not None:
                self._check_inputs(f"{self.name}, {split}", *data)
                self._check_targets(f"{self.name}, {split}", data[1])
        if self.test is not None:
            for what, ours, theirs in zip(
                ("inputs", "targets"), self.train, self.test, strict=True
            ):
                if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
                    raise DataError(
                        f"{self.name}: train and test {what} differ: {_kind(ours)} and "
                        f"{_kind(theirs)}; bring both to one shape and type"
                    )
        if self.num_classes is not None and not self.classes:
            object.__setattr__(self, "classes", tuple(map(str, range(self.num_classes))))
        if len(self.classes) != (self.num_classes or 0):
            raise DataError(
                f"{self.name}: {len(self.classes)} class names for {self.num_classes} classes"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the example axis."""
        return tuple(self.train[0].shape[1:])

    @property
    def output_size(self) -> int:
        """Number of outputs a model needs: K classes, or the number of target columns."""
        return self.num_classes or self.train[1].shape[-1]

    def describe(self) -> str:
        """Say in one line what is in here: sizes, shape, kind of targets, source."""
        test = 0 if self.test is None else len(self.test[0])
        kind = f"{self.num_classes} classes" if self.num_classes else f"{self.likelihood} targets"
        return (
            f"{len(self.train[0])} training and {test} test examples of shape "
            f"{self.input_shape}, {kind}; {self.source}"
        )

    def _check_inputs(self, where: str, x: Tensor, y: Tensor) -> None:
        if x.ndim < 2:
            raise DataError(f"{where}: inputs have shape {tuple(x.shape)}; expected (examples, …)")
        if len(x) != len(y):
            raise DataError(f"{where}: {len(x)} inputs but {len(y)} targets; they must be paired")
        if x.numel() == 0:
            raise DataError(f"{where}: there are no examples (inputs of shape {tuple(x.shape)})")
        if x.is_complex():
            raise DataError(f"{where}: inputs are {x.dtype}; expected real numbers or integers")
        _check_finite(f"{where}: inputs", x)

    def _check_targets(self, where: str, y: Tensor) -> None:
        if self.likelihood != "categorical":
            if self.num_classes is not None:
                raise DataError(f"{where}: num_classes is for categorical targets only")
            if y.ndim < 2 or not y.is_floating_point():
                raise DataError(
                    f"{where}: {self.likelihood} targets are {_kind(y)}; expected real numbers of "
                    "shape (N, outputs)"
                )
            _check_finite(f"{where}: targets", y)
            if self.likelihood == "bernoulli" and not 0 <= y.min() <= y.max() <= 1:
                raise DataError(
                    f"{where}: Bernoulli targets run from {y.min():g} to {y.max():g}; expected "
                    "probabilities in [0, 1]"
                )
            return
        if y.dtype != torch.int64 or y.ndim < 1:
            raise DataError(f"{where}: labels are {_kind(y)}; expected int64 of shape (N,)")
        low, high = (int(bound) for bound in torch.aminmax(y))
        if low < 0:
            raise DataError(f"{where}: labels run from {low} to {high}; number the classes from 0")
        if self.num_classes is None or self.num_classes < 2:
            raise DataError(
                f"{where}: number of classes {self.num_classes}; a classification needs two or more"
            )
        if high >= self.num_classes:
            raise DataError(
                f"{where}: labels run from {low} to {high}; expected 0 to {self.num_classes - 1} "
                f"for the {self.num_classes} classes of the training data"
            )


def _kind(tensor: Tensor) -> str:
    shape = ", ".join(["N", *map(str, tensor.shape[1:])])
    return f"{_dtype(tensor)} of shape ({shape})"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_finite(what: str, tensor: Tensor) -> None:
    """Refuse NaN and ±inf; the extremes carry both, and need no mask as large as the data."""
    if not tensor.is_floating_point() or all(
        bool(torch.isfinite(bound)) for bound in torch.aminmax(tensor)
    ):
        return
    bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
    first = int(bad.nonzero()[0])
    raise DataError(
        f"{what} of {int(bad.sum())} of {len(tensor)} examples are NaN or infinite (in "
        f"{_dtype(tensor)}; the first is example {first}); remove or repair them"
    )
