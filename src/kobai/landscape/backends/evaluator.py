"""Evaluators: values of an objective at many coordinates of a subspace of parameter space."""

import abc
import contextlib
import time
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from kobai.landscape.backends.data import Chunk, HeldData, Layout
from kobai.landscape.backends.loop import Backend, Mover, Point
from kobai.landscape.directions.subspace import Directions
from kobai.problem import EmpiricalRisk, Objective, pure

Precision = Literal["given", "bfloat16"]


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
        """Values at K points, (K, number of fields), float64 on the CPU."""

    def loss(self, *coordinates: float) -> float:
        """The loss at one point."""
        return float(self.measure([coordinates])[0, 0])


@final
class ValueEvaluator(Evaluator):
    """Any objective, one call of `value` a point.

    Args:
        objective: The function.
        directions: The subspace.
    """

    fields = ("loss",)

    def __init__(self, objective: Objective, directions: Directions) -> None:
        self.name = "value of the objective"
        self.objective = objective
        self._mover = Mover(objective.space, directions)

    def measure(self, points: Sequence[Point]) -> Tensor:
        """See `Evaluator.measure`."""
        values = [self.objective.value(self._mover.theta(point)).double() for point in points]
        return torch.stack(values).cpu().unsqueeze(1)


@final
class RiskEvaluator(Evaluator):
    """An empirical risk over data held on the device: loss, standard error, accuracy.

    The standard error is that of the mean over examples as a sample of a population (of the ratio
    of sums, where the likelihood counts terms). The accuracy is NaN for regression. The loss of a
    class is the mean over the examples with that target.

    Args:
        objective: The empirical risk.
        held: Its data.
        backend: How outputs are computed.
        chunk: Examples a forward pass.
        layout: Memory layout of image inputs.
        classes: Measure the loss of this many classes as well; 0 for none.
        precision: "bfloat16" runs matrix products and convolutions in bfloat16 (torch.autocast);
            the loss of the outputs is computed in full precision all the same.
    """

    def __init__(
        self,
        objective: EmpiricalRisk,
        held: HeldData,
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
        self.classes = classes
        self.fields = ("loss", "stderr", "accuracy", *(f"class_loss_{k}" for k in range(classes)))
        self.objective = objective
        self.backend = backend
        self.held = held
        self._chunks = held.chunks(chunk, layout)
        self._members = held.class_sizes(classes) if classes else torch.zeros(0)

    def in_chunks(self) -> EmpiricalRisk:
        """The same objective over the chunks that were found fast, for derivatives."""
        batches = tuple(chunk.batch for chunk in self._chunks)
        return EmpiricalRisk(
            self.objective.model,
            self.objective.likelihood,
            batches,
            coupled=self.objective.coupled,
        )

    @property
    def chunks(self) -> list[Chunk]:
        """The pieces in which the data are gone over."""
        return self._chunks

    def has_accuracy(self) -> bool:
        """Whether the likelihood knows right from wrong."""
        batch = next(self.held.batches[0].chunks(2))
        with torch.no_grad(), pure(self.objective.model, coupled=self.objective.coupled):
            outputs = self.objective.forward(self.objective.theta(), batch)
        return self.objective.likelihood.correct(outputs, batch.targets) is not None

    def measure(self, points: Sequence[Point]) -> Tensor:
        """See `Evaluator.measure`. Cost: about one forward pass over the data a point."""
        return self._finish(self._sums(points, self._chunks))

    def seconds(self, points: Sequence[Point], examples: int) -> float:
        """Time a point and example: the faster of two runs over at least so many examples."""
        some, count = [], 0
        for chunk in self._chunks:
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
        # Tensors stay on the device until all points are done: one wait, not one a batch.
        with (
            torch.no_grad(),
            pure(self.objective.model, coupled=self.objective.coupled),
            self._reduced(),
        ):
            return self.backend.sums(points, chunks, self._of).cpu()

    def _reduced(self) -> contextlib.AbstractContextManager:
        if self.precision == "given":
            return contextlib.nullcontext()
        return torch.autocast(self.objective.space.device.type, torch.bfloat16)

    def _of(self, outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """(Σ l, Σ l², Σ l w, Σ w², correct, Σ l of each class) at each of K points, float64.

        Args:
            outputs: (K, n, …).
            targets: (n, …), the same at all points.
            weights: (n,).
        """
        count, size = outputs.shape[:2]
        outputs = outputs.to(self.objective.space.dtype).flatten(0, 1)
        repeated = targets.expand(count, *targets.shape).flatten(0, 1)
        nll = self.objective.likelihood.nll(outputs, repeated).double().view(count, size)
        right = self.objective.likelihood.correct(outputs, repeated)
        sums = torch.stack(
            (
                nll.sum(1),
                nll.square().sum(1),
                nll @ weights,
                torch.dot(weights, weights).expand(count),
                nll.new_full((count,), float("nan"))
                if right is None
                else right.double().view(count, size).sum(1),
            ),
            dim=1,
        )
        if not self.classes:
            return sums
        of_class = nll.new_zeros(count, self.classes).index_add_(1, targets.long(), nll)
        return torch.cat((sums, of_class), dim=1)

    def _finish(self, sums: Tensor) -> Tensor:
        """From sums (K, 5 + classes) to fields (K, 3 + classes)."""
        total, squares, cross, weights, correct = sums[:, :5].unbind(1)
        weight, size = self.objective.weight, self.held.size
        loss = total / weight
        spread = (squares - 2 * loss * cross + loss.square() * weights).clamp(min=0.0)
        correction = size / (size - 1) if size > 1 else float("nan")
        stderr = (spread * correction).sqrt() / weight
        values = torch.stack((loss, stderr, correct / self.held.terms), dim=1)
        # A class without examples has no loss: 0 / 0 is NaN.
        return torch.cat((values, sums[:, 5:] / self._members), dim=1)
