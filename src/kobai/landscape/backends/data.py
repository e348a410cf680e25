"""The whole data of an empirical risk, kept on the device and cut into chunks."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kobai.problem import Batch, EmpiricalRisk

Layout = Literal["given", "channels_last"]

JOIN_BOUND = 2**32
"""Bytes of data that are joined into one tensor; larger data keep the objective's batches."""


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """Some consecutive examples with what their share of the sums needs.

    Attributes:
        batch: Inputs and targets on the device.
        weights: What each example adds to the normaliser (n,), float64.
    """

    batch: Batch
    weights: Tensor


class DeviceData:
    """All examples of an objective on its device, loaded once.

    Args:
        objective: The empirical risk. Its batches are joined where their shapes allow it, so that
            the chunk size is free to choose; sums over chunks equal the whole to rounding.

    Attributes:
        batches: The data, in one batch if they could be joined.
        size: Number of examples N.
        terms: Number of terms that are not ignored.
    """

    def __init__(self, objective: EmpiricalRisk) -> None:
        self.objective = objective
        device = objective.space.device
        batches = [batch.to(device) for batch in objective.batches]
        # What the objective's own batches were: a size known to fit in memory.
        self.largest = max(batch.size for batch in batches)
        self.batches = _joined(batches)
        self.size = sum(batch.size for batch in batches)
        likelihood = objective.likelihood
        self.terms = sum(float(likelihood.terms(b.targets).sum()) for b in self.batches)
        self.has_images = any(_is_image(t) for b in self.batches for t in _tensors(b))

    def chunks(self, size: int, layout: Layout = "given") -> list[Chunk]:
        """Cut the data into chunks of at most `size` examples, in order."""
        batches = [batch for whole in self.batches for batch in whole.chunks(size)]
        if layout == "channels_last":
            batches = [_channels_last(batch) for batch in batches]
        return [Chunk(batch, self._weights(batch)) for batch in batches]

    def class_sizes(self, classes: int) -> Tensor:
        """Count the examples with each of the first `classes` targets, float64 on the CPU.

        Raises:
            ValueError: If targets are not one class an example below that number.
        """
        sizes = torch.zeros(classes, dtype=torch.float64)
        for batch in self.batches:
            targets = batch.targets
            if targets.ndim != 1 or targets.is_floating_point():
                raise ValueError(
                    "the loss of each class needs one class index an example, got targets of shape "
                    f"{tuple(targets.shape)} in {targets.dtype}; leave class_loss out of fields"
                )
            if int(targets.min()) < 0 or int(targets.max()) >= classes:
                raise ValueError(
                    f"targets must lie in 0 … {classes - 1} for class_loss, got "
                    f"{int(targets.min())} … {int(targets.max())}"
                )
            sizes += torch.bincount(targets.long().cpu(), minlength=classes).double()
        return sizes

    def fingerprint(self) -> str:
        """Compute SHA-256 of all inputs and targets: the identity of the data."""
        digest = hashlib.sha256()
        for batch in self.batches:
            for tensor in (*_tensors(batch), batch.targets):
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _weights(self, batch: Batch) -> Tensor:
        if self.objective.likelihood.reduction == "examples":
            return torch.ones(batch.size, dtype=torch.float64, device=batch.targets.device)
        return self.objective.likelihood.terms(batch.targets).double()


def _tensors(batch: Batch) -> list[Tensor]:
    if isinstance(batch.inputs, Tensor):
        return [batch.inputs]
    return list(batch.inputs if isinstance(batch.inputs, tuple) else batch.inputs.values())


def _like(batch: Batch, inputs: Sequence[Tensor], targets: Tensor) -> Batch:
    """Make a batch whose inputs are of the same kind: a tensor, a tuple or a mapping."""
    if isinstance(batch.inputs, Tensor):
        return Batch(inputs[0], targets)
    if isinstance(batch.inputs, tuple):
        return Batch(tuple(inputs), targets)
    return Batch(dict(zip(batch.inputs, inputs, strict=True)), targets)


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_floating_point()


def _channels_last(batch: Batch) -> Batch:
    inputs = [
        t.contiguous(memory_format=torch.channels_last) if _is_image(t) else t
        for t in _tensors(batch)
    ]
    return _like(batch, inputs, batch.targets)


def _joined(batches: list[Batch]) -> list[Batch]:
    """Join batches into one, or leave them where shapes differ or the data are very large."""
    keys = {
        (type(b.inputs), *(t.shape[1:] for t in _tensors(b)), b.targets.shape[1:]) for b in batches
    }
    total = sum(t.nbytes for b in batches for t in _tensors(b))
    if len(batches) == 1 or len(keys) > 1 or total > JOIN_BOUND:
        return batches
    columns = [torch.cat(column) for column in zip(*map(_tensors, batches), strict=True)]
    return [_like(batches[0], columns, torch.cat([b.targets for b in batches]))]
