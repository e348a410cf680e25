"""Evaluators: values of an objective at many coordinates of a subspace of parameter space."""

import abc
import contextlib
import time
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from kobai.landscape.backends.data import Chunk, DeviceData, Layout
from kobai.landscape.backends.interface import Backend
from kobai.landscape.backends.passes import ExampleSums, MovedParameters, Point
from kobai.landscape.directions.subspace import Directions
from kobai.landscape.options import Precision
from kobai.problem import EmpiricalRisk, Objective, pure


class Evaluator(abc.ABC):
    """Measures an objective at points given by their coordinates.

    Attributes:
        name: How it computes, in a few words.
        fields: What it measures, in the order of the columns of `measure`.
    """

    name: str
    fields: tuple[str, ...]

    @abc.abstractmethod
    def measure(self, points: Sequence[Point]) -> Tensor:
        """Compute the values at K points, (K, number of fields), float64 on the CPU."""

    def loss(self, *coordinates: float) -> float:
        """Compute the loss at one point."""
        return float(self.measure([coordinates])[0, 0])


class ObjectiveEvaluator(Evaluator):
    """Measures an objective, and knows a form of it that is fast to differentiate.

    Attributes:
        objective: The objective.
    """

    objective: Objective

    @abc.abstractmethod
    def has_accuracy(self) -> bool:
        """Tell whether there is a likelihood, and whether it knows right from wrong."""

    @abc.abstractmethod
    def smooth(self) -> Objective:
        """Give the same objective in the chunks that were found fast, for derivatives."""

    @abc.abstractmethod
    def identity(self) -> str:
        """Tell one objective from another: by its data, or by its value where there are none."""


@final
class ValueEvaluator(ObjectiveEvaluator):
    """Any objective, one call of `value` per point.

    Args:
        objective: The function.
        directions: The subspace.
    """

    fields = ("loss",)
    name = "value of the objective"

    def __init__(self, objective: Objective, directions: Directions) -> None:
        self.objective = objective
        self._origin = directions.origin
        self._moved = MovedParameters(objective.space, directions)

    def has_accuracy(self) -> bool:
        """Tell that there is none."""
        return False

    def smooth(self) -> Objective:
        """Give the objective itself."""
        return self.objective

    def identity(self) -> str:
        """Give the value at the origin."""
        return float(self.objective.value(self._origin)).hex()

    def measure(self, points: Sequence[Point]) -> Tensor:
        """See `Evaluator.measure`."""
        values = [self.objective.value(self._moved.theta(point)).double() for point in points]
        return torch.stack(values).cpu().unsqueeze(1)


@final
class RiskEvaluator(ObjectiveEvaluator):
    """An empirical risk over data held on the device: loss, standard error, accuracy.

    The standard error is that of the mean over examples as a sample of a population (of the ratio
    of sums, where the likelihood counts terms). The accuracy is NaN for regression. The loss of a
    class is the mean over the examples with that target.

    Args:
        objective: The empirical risk.
        data: Its data on the device.
        backend: How outputs are computed.
        chunk: Examples per forward pass.
        layout: Memory layout of image inputs.
        classes: Measure the loss of this many classes as well; 0 for none.
        precision: "bfloat16" runs matrix products and convolutions in bfloat16 (torch.autocast);
            the loss of the outputs is computed in full precision all the same.
    """

    def __init__(
        self,
        objective: EmpiricalRisk,
        data: DeviceData,
        backend: Backend,
        *,
        chunk: int,
        layout: Layout = "given",
        classes: int = 0,
        precision: Precision = "given",
    ) -> None:
        self.name = f"{backend.name}, chunks of {chunk} examples"
        if layout != "given":
            self.name += ", channels last"
        if precision != "given":
            self.name += f", {precision}"
        self.precision = precision
        self.fields = ("loss", "stderr", "accuracy", *(f"class_loss_{k}" for k in range(classes)))
        self.objective = self.risk = objective
        self.backend = backend
        self.data = data
        self.chunks = data.chunks(chunk, layout)
        self._example_sums = ExampleSums(objective, classes)
        self._members = data.class_sizes(classes) if classes else torch.zeros(0)

    def smooth(self) -> EmpiricalRisk:
        """See `ObjectiveEvaluator.smooth`."""
        risk, batches = self.risk, tuple(chunk.batch for chunk in self.chunks)
        return EmpiricalRisk(risk.model, risk.likelihood, batches, coupled=risk.coupled)

    def identity(self) -> str:
        """Give a fingerprint of the data."""
        return self.data.fingerprint()

    def has_accuracy(self) -> bool:
        """See `ObjectiveEvaluator.has_accuracy`."""
        batch = next(self.data.batches[0].chunks(2))
        with torch.no_grad(), pure(self.risk.model, coupled=self.risk.coupled):
            outputs = self.risk.forward(self.risk.theta(), batch)
        return self.risk.likelihood.correct(outputs, batch.targets) is not None

    def measure(self, points: Sequence[Point]) -> Tensor:
        """See `Evaluator.measure`. Cost: about one forward pass over the data per point."""
        sums = self._sums(points, self.chunks)
        return self._example_sums.values(sums, self.data.size, self.data.terms, self._members)

    def seconds(self, points: Sequence[Point], examples: int) -> float:
        """Time a point and example: the faster of two runs over at least so many examples."""
        some, count = [], 0
        for chunk in self.chunks:
            if count >= examples:
                break
            some.append(chunk)
            count += chunk.batch.size
        best = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            self._sums(points, some)
            best = min(best, time.perf_counter() - start)
        return best / count / len(points)

    def _sums(self, points: Sequence[Point], chunks: Sequence[Chunk]) -> Tensor:
        # Tensors stay on the device until all points are done: one wait, not one per batch.
        reduced = contextlib.nullcontext()
        if self.precision != "given":
            reduced = torch.autocast(self.risk.space.device.type, torch.bfloat16)
        with torch.no_grad(), pure(self.risk.model, coupled=self.risk.coupled), reduced:
            return self.backend.sums(points, chunks, self._example_sums).cpu()
