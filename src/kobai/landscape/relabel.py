"""The same inputs with a model's own outputs for targets."""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from kobai.problem import Batch, EmpiricalRisk, Examples, Problem
from kobai.problem.examples import StreamedExamples, TensorExamples, as_batch
from kobai.problem.likelihoods import TargetKind as Targets


def relabelled(problem: Problem, theta: Float[Tensor, " P"], targets: Targets = "soft") -> Problem:
    """Make the problem whose targets, in every split, are the model's own outputs at θ.

    Soft targets are the mean of the predictive distribution: probabilities (categorical,
    Bernoulli), or the outputs themselves (Gaussian). The loss of probabilities is then the excess
    over their entropy; label smoothing would move the minimum and is left out. Hard targets
    are the decisions: the class of the largest output, or the side of one half. Ignored positions
    stay ignored.

    Args:
        problem: Model, likelihood and data; the targets matter only for what they ignore.
        theta: Parameters whose outputs become targets.
        targets: Which.

    Returns:
        A new problem over the same model and the same inputs, which are not copied. Cost: one
        forward pass over every split, and N C numbers of memory.

    Raises:
        ValueError: If the targets are unknown or have no meaning for the likelihood, or the module
            is not a function of θ.
    """
    if targets not in ("soft", "hard"):
        raise ValueError(f"targets must be 'soft' or 'hard', got {targets!r}")
    splits = {
        split: _relabel(problem.examples(split), problem.objective(split=split), theta, targets)
        for split in problem.splits
    }
    return Problem(
        problem.model,
        problem.likelihood.for_own_targets(targets),
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
    )


def _relabel(examples: Examples, risk: EmpiricalRisk, theta: Tensor, targets: Targets) -> Examples:
    outputs = risk.outputs(theta)
    if isinstance(examples, TensorExamples):
        original = examples.all.targets.to(outputs.device)
        made = risk.likelihood.own_targets(outputs, original, targets)
        return TensorExamples(Batch(examples.all.inputs, made.to(examples.all.targets.device)))
    assert isinstance(examples, StreamedExamples)
    original = torch.cat([batch.targets for batch in risk.batches]).to(outputs.device)
    made = risk.likelihood.own_targets(outputs, original, targets).cpu()
    return StreamedExamples(_Paired(examples, made), _Paired.collate)


@final
class _Paired(Dataset[Any]):
    """Items of a data set, each with the target that replaces its own."""

    def __init__(self, examples: StreamedExamples, targets: Tensor) -> None:
        self.examples, self.targets = examples, targets

    def __len__(self) -> int:
        return self.examples.size

    def __getitem__(self, i: int) -> Any:
        item = self.examples.dataset[self.examples.indices[i]]
        return item, self.targets[i], self.examples.collate

    @staticmethod
    def collate(items: list[Any]) -> Batch:
        """Collate the inputs as the data set does, and stack the new targets beside them."""
        originals, targets, collates = zip(*items, strict=True)
        inputs = as_batch(collates[0](list(originals))).inputs
        return Batch(inputs, torch.stack(targets))
