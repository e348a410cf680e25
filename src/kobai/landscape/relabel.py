"""The same inputs with a model's own outputs for targets."""

from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from kobai.problem import (
    Batch,
    Bernoulli,
    Categorical,
    EmpiricalRisk,
    Examples,
    Gaussian,
    Likelihood,
    Problem,
)
from kobai.problem.examples import StreamedExamples, TensorExamples, as_batch

Targets = Literal["soft", "hard"]


def relabelled(problem: Problem, theta: Float[Tensor, " P"], targets: Targets = "soft") -> Problem:
    """Make the problem whose targets, in every split, are the model's own outputs at θ.

    Soft targets are the predicted distribution (categorical, Bernoulli) or the outputs themselves
    (Gaussian), with the loss as excess over the targets' entropy; label smoothing would move the
    minimum and is left out. Hard targets are the decisions: the class of the largest output, or the
    side of one half. Ignored positions stay ignored.

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
    if targets == "hard" and isinstance(problem.likelihood, Gaussian):
        raise ValueError("a regression has no decisions to make targets of; use targets='soft'")
    splits = {
        split: _relabel(problem.examples(split), problem.objective(split=split), theta, targets)
        for split in problem.splits
    }
    return Problem(
        problem.model,
        likelihood_of(problem.likelihood, targets),
        train=splits["train"],
        validation=splits.get("validation"),
        test=splits.get("test"),
    )


def likelihood_of(likelihood: Likelihood, targets: Targets) -> Likelihood:
    """Make the likelihood whose loss is least, 0 with soft targets, where outputs are targets.

    Args:
        likelihood: Of the original problem; its scale, axis and reduction are kept.
        targets: Which kind of targets it will meet.

    Raises:
        TypeError: If the likelihood is not one of kobai's own.
    """
    excess = targets == "soft"
    if isinstance(likelihood, Categorical):
        return Categorical(
            ignore_index=likelihood.ignore_index,
            axis=likelihood.axis,
            reduction=likelihood.reduction,
            scale=likelihood.scale,
            excess=excess,
        )
    if isinstance(likelihood, Bernoulli):
        return Bernoulli(reduction=likelihood.reduction, scale=likelihood.scale, excess=excess)
    if isinstance(likelihood, Gaussian):
        return likelihood
    raise TypeError(
        f"targets can be made for Categorical, Bernoulli and Gaussian, got {likelihood!r}"
    )


def own_targets(
    likelihood: Likelihood, outputs: Tensor, original: Tensor, targets: Targets
) -> Tensor:
    """Make the targets that a model with these outputs would give itself.

    Args:
        likelihood: Of the original problem.
        outputs: (N, …) raw outputs.
        original: The targets of the data, for what they ignore.
        targets: Which kind.
    """
    if isinstance(likelihood, Categorical):
        labelled = not original.is_floating_point()
        kept = original != likelihood.ignore_index if labelled else None
        if targets == "hard":
            decided = outputs.argmax(likelihood.axis)
            return decided if kept is None else torch.where(kept, decided, likelihood.ignore_index)
        soft = torch.softmax(outputs, likelihood.axis)
        # A position without mass has no loss, whatever the outputs.
        return soft if kept is None else soft * kept.unsqueeze(likelihood.axis)
    if isinstance(likelihood, Bernoulli):
        return (outputs > 0).to(outputs.dtype) if targets == "hard" else torch.sigmoid(outputs)
    return outputs


def _relabel(examples: Examples, risk: EmpiricalRisk, theta: Tensor, targets: Targets) -> Examples:
    outputs = risk.outputs(theta)
    if isinstance(examples, TensorExamples):
        original = examples.all.targets.to(outputs.device)
        made = own_targets(risk.likelihood, outputs, original, targets)
        return TensorExamples(Batch(examples.all.inputs, made.to(examples.all.targets.device)))
    assert isinstance(examples, StreamedExamples)
    original = torch.cat([batch.targets for batch in risk.batches]).to(outputs.device)
    made = own_targets(risk.likelihood, outputs, original, targets).cpu()
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
