"""Loss and accuracy of a model on the splits of its problem, as a function of its parameters."""

from typing import final

import torch

from kobai.problem import EmpiricalRisk, Examples, Problem, evaluation_mode
from kobai.problem.examples import StreamedExamples, TensorExamples


@final
class Evaluator:
    """Measures a model on every split, in evaluation mode and without a trace.

    Args:
        problem: Model and data.
        train_limit: Measure at most so many training examples, always the same ones, evenly spaced
            through the data (which may be sorted); None measures all.
    """

    def __init__(self, problem: Problem, *, train_limit: int | None = None) -> None:
        self._problem = problem
        self.measured = min(problem.train.size, train_limit or problem.train.size)
        self._objectives: dict[str, EmpiricalRisk] = {}
        with evaluation_mode(problem.model):
            for split in problem.splits:
                self._objectives[split] = (
                    self._subset()
                    if split == "train" and self.measured < problem.train.size
                    else problem.objective(split=split)
                )

    def __call__(self) -> dict[str, float]:
        """``{"train_loss": …, "train_accuracy": …, "validation_loss": …}`` of the splits there are.

        Cost: one forward pass over each split.
        """
        row = {}
        with evaluation_mode(self._problem.model):
            for split, objective in self._objectives.items():
                for name, value in objective.metrics().items():
                    row[f"{split}_{name}"] = value
        return row

    def _subset(self) -> EmpiricalRisk:
        problem, count = self._problem, self.measured
        index = torch.arange(count) * problem.train.size // count
        return Problem(problem.model, problem.likelihood, _take(problem.train, index)).objective()


def _take(examples: Examples, index: torch.Tensor) -> Examples:
    if isinstance(examples, TensorExamples):
        return TensorExamples(examples.all.take(index.to(examples.all.targets.device)))
    if isinstance(examples, StreamedExamples):
        chosen = [examples.indices[i] for i in index.tolist()]
        return StreamedExamples(examples.dataset, examples.collate, chosen)
    raise TypeError(
        f"evaluate_train_limit needs examples that can be indexed, got {type(examples).__name__}"
    )
