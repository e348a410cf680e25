"""Greedy supervised pretraining: one layer after the other, each under an output layer of its own.

Source: Bengio et al. 2007, Greedy layer-wise training of deep networks; Goodfellow, Bengio and
Courville 2016, Deep Learning, §8.7.4.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from kobai.problem import Likelihood, Problem
from kobai.results import History
from kobai.training.loop import train


def greedy_pretraining(
    parts: Sequence[nn.Module],
    heads: Sequence[nn.Module],
    likelihood: str | Likelihood | nn.Module,
    train_data: Any,
    make: Callable[[nn.Module], torch.optim.Optimizer],
    *,
    test_data: Any = None,
    freeze: bool = True,
    epochs: float = 5.0,
    batch_size: int = 128,
    generator: torch.Generator,
) -> list[History]:
    """Train part 1 under head 1, then part 2 on top of it under head 2, and so on.

    Afterwards ``nn.Sequential(*parts, heads[-1])`` is the whole network, to be fine-tuned by
    `kobai.training.train`; the other heads are thrown away.

    Args:
        parts: The layers of the network, without its output layer; changed in place.
        heads: An output layer for each part.
        likelihood: What the outputs mean.
        train_data: Training data, as in `kobai.Problem`.
        make: From a module to an optimizer of those of its parameters that require a gradient;
            called once a stage.
        test_data: Other data to measure on.
        freeze: Leave finished parts as they are; else they are trained on.
        epochs: Of each stage.
        batch_size: Examples a minibatch.
        generator: Draws the order of the examples.

    Returns:
        The record of each stage.

    Raises:
        ValueError: If there are not as many heads as parts, or none.
    """
    if not parts or len(parts) != len(heads):
        raise ValueError(
            f"every part needs a head of its own, got {len(parts)} parts and {len(heads)} heads"
        )
    records = []
    held = [p for part in parts for p in part.parameters() if p.requires_grad]
    try:
        for stage, head in enumerate(heads):
            if freeze:
                for part in parts[:stage]:
                    part.requires_grad_(False)
            model = nn.Sequential(*parts[: stage + 1], head)
            problem = Problem(model, likelihood, train=train_data, test=test_data)
            records.append(
                train(problem, make(model), epochs=epochs, batch_size=batch_size,
                      generator=generator, label=f"layer {stage + 1}")
            )  # fmt: skip
    finally:
        for p in held:
            p.requires_grad_(True)
    return records
