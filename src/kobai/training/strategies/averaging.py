"""Polyak averaging: the parameters met on the way, averaged into one model."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kobai.problem import Batch, Problem, call_arguments
from kobai.training.minibatches import uses_batch_statistics


@final
class PolyakAverage:
    r"""A second model that holds the average of a model's parameters over its training.

    The running mean, θ̂ₜ = θ̂ₜ₋₁ − (θ̂ₜ₋₁ − θₜ)/t, settles where iterates swing across a valley; for
    convex functions it converges at the best rate. For networks the exponential mean, θ̂ₜ = α θ̂ₜ₋₁ +
    (1 − α) θₜ, forgets where training came from. Both are `torch.optim.swa_utils.AveragedModel`;
    this class adds where to start, steps between updates, statistics of batch normalisation, and
    state that can be saved.

    Args:
        model: The model in training; it is copied, not changed.
        decay: α in [0, 1), the exponential mean; None: the running mean.
        start: Steps to let pass before the first average, such as those of the descent into the
            valley.
        every: Steps between two updates.

    Raises:
        ValueError: If a number is out of range.

    Source: Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging;
    Goodfellow, Bengio and Courville 2016, Deep Learning, §8.7.3 and equation 8.39.
    """

    def __init__(
        self, model: nn.Module, *, decay: float | None = None, start: int = 0, every: int = 1
    ) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay lies in [0, 1), got {decay}; None is the running mean")
        if start < 0 or every < 1:
            raise ValueError(
                f"start is 0 steps or more and every 1 or more, got {start} and {every}"
            )
        self.decay, self.start, self.every = decay, start, every
        self.steps = 0
        average = None if decay is None else get_ema_multi_avg_fn(decay)
        self._averaged = AveragedModel(model, multi_avg_fn=average)

    def __repr__(self) -> str:
        kind = "running mean" if self.decay is None else f"decay={self.decay:g}"
        return f"PolyakAverage({kind}, start={self.start}, every={self.every}, of {self.count})"

    @property
    def model(self) -> nn.Module:
        """The averaged model; before the first update the model as it was when this was made."""
        return self._averaged.module

    @property
    def count(self) -> int:
        """Points averaged so far."""
        return int(self._averaged.n_averaged)

    def update(self, model: nn.Module) -> bool:
        """Take in the model after one more optimizer step.

        Returns:
            Whether it entered the average (not before `start`, then every `every` steps).
        """
        self.steps += 1
        due = self.steps > self.start and (self.steps - self.start - 1) % self.every == 0
        if due:
            self._averaged.update_parameters(model)
        return due

    def refresh_statistics(self, data: Problem | Iterable[Batch], *, batch_size: int = 256) -> int:
        """Measure the running statistics of normalisation layers anew, at the averaged parameters.

        Those copied from training belong to other parameters. Dropout and the like stay off.

        Args:
            data: The problem, whose training inputs are used in their order; or batches.
            batch_size: Examples a forward pass, where a problem is given.

        Returns:
            Number of normalisation layers refreshed; 0 costs nothing.
        """
        norms = _tracking(self.model)
        if not norms:
            return 0
        batches = data.train.batches(batch_size) if isinstance(data, Problem) else data
        momenta = [norm.momentum for norm in norms]
        with _only_training(self.model, norms), torch.no_grad():
            for norm in norms:
                norm.running_mean.zero_()
                norm.num_batches_tracked.zero_()
                if getattr(norm, "running_var", None) is not None:
                    norm.running_var.fill_(1.0)
                norm.momentum = None  # a plain mean over the batches
            try:
                for batch in batches:
                    # One example has no statistics.
                    if batch.size > 1 or not uses_batch_statistics(self.model):
                        args, kwargs = call_arguments(batch.to(_device(self.model)))
                        self.model(*args, **kwargs)
            finally:
                for norm, momentum in zip(norms, momenta, strict=True):
                    norm.momentum = momentum
        return len(norms)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[nn.Module]:
        """Lend the averaged parameters and buffers to a model; it has its own back afterwards."""
        own = copy.deepcopy(model.state_dict())
        model.load_state_dict(self.model.state_dict())
        try:
            yield model
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """Average and position; plain tensors and numbers."""
        return {"steps": self.steps, "averaged": self._averaged.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.steps = int(state["steps"])
        self._averaged.load_state_dict(state["averaged"])


def _tracking(model: nn.Module) -> list[Any]:
    """The layers that keep running statistics, torch's and kobai's; all name them alike."""
    return [
        part
        for part in model.modules()
        if isinstance(getattr(part, "running_mean", None), Tensor)
        and hasattr(part, "num_batches_tracked")
        and not getattr(part, "coupled_batch", False)
    ]


@contextmanager
def _only_training(model: nn.Module, chosen: list[Any]) -> Iterator[None]:
    """All layers in evaluation mode but the chosen ones; each its own mode afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    for part in chosen:
        part.training = True
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _device(model: nn.Module) -> torch.device:
    first: Tensor | None = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device
