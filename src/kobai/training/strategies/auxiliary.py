"""Auxiliary heads: more outputs on the way, so that gradients reach the middle of a deep net.

The heads' outputs are stacked and the targets carry the weights, so that the whole is an ordinary
problem of softmax classification: every optimizer and every curvature matrix takes it.
"""

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kobai.problem import Categorical, Problem


@final
class AuxiliaryHeads(nn.Module):
    """A chain of parts with an output layer at its end and others on the way.

    Args:
        parts: The trunk, one module after the other.
        output: The main output layer, after the last part.
        heads: Position of a part → output layer on what it gives; all have as many outputs as the
            main one.

    Raises:
        ValueError: If a position is not that of a part.

    Returns of a call: (N, 1 + K, C), the main output first, then the heads in their order.

    Source: Lee et al. 2015, Deeply-supervised nets; Szegedy et al. 2015, Going deeper with
    convolutions, §5; Goodfellow, Bengio and Courville 2016, Deep Learning, §8.7.5.
    """

    def __init__(
        self, parts: Sequence[nn.Module], output: nn.Module, heads: dict[int, nn.Module]
    ) -> None:
        super().__init__()
        if strangers := [at for at in heads if not 0 <= at < len(parts)]:
            raise ValueError(f"heads sit on parts 0 to {len(parts) - 1}, got {strangers}")
        self.parts = nn.ModuleList(parts)
        self.output = output
        self.places = tuple(sorted(heads))
        self.heads = nn.ModuleList(heads[at] for at in self.places)

    def forward(self, x: Tensor) -> Float[Tensor, "N heads C"]:
        """All outputs."""
        found = []
        for at, part in enumerate(self.parts):
            x = part(x)
            if at in self.places:
                found.append(self.heads[self.places.index(at)](x))
        return torch.stack([self.output(x), *found], 1)

    def main(self) -> nn.Sequential:
        """The network without its auxiliary heads, the same parameters: what is kept in the end."""
        return nn.Sequential(*self.parts, self.output)


def weighted_targets(
    labels: Int[Tensor, " N"], weights: Sequence[float], classes: int, *, dtype: torch.dtype
) -> Float[Tensor, "N heads C"]:
    """Labels as targets of every head, each with its weight in the loss as mass.

    Args:
        labels: Class of each example.
        weights: Weight of the main output, which is usually 1, then of each head.
        classes: C.
        dtype: Of the outputs.

    Raises:
        ValueError: If a weight is negative.
    """
    if any(weight < 0 for weight in weights):
        raise ValueError(f"weights of heads must not be negative, got {tuple(weights)}")
    mass = torch.tensor(tuple(weights), dtype=dtype, device=labels.device)
    return F.one_hot(labels, classes).to(dtype)[:, None] * mass[:, None]


def auxiliary_problem(
    model: AuxiliaryHeads,
    train: tuple[Tensor, Int[Tensor, " N"]],
    *,
    weights: Sequence[float],
) -> Problem:
    """Classification with loss Σₖ wₖ CEₖ over the main output and the heads.

    For weights that change, such as heads that fade, train in stages: make the problem anew with
    the next weights, the model goes on. The recorded accuracy counts all heads; measure
    `AuxiliaryHeads.main` for the network itself.

    Args:
        model: Trunk and heads.
        train: Inputs and class labels.
        weights: Weight of the main output, then of each head.

    Raises:
        ValueError: If there are not as many weights as outputs.
    """
    if len(weights) != 1 + len(model.heads):
        raise ValueError(
            f"the model has one main output and {len(model.heads)} heads, got {len(weights)} "
            "weights; give the main output's first"
        )
    inputs, labels = train
    with torch.no_grad():
        outputs = model(inputs[:2])
    targets = weighted_targets(labels, weights, outputs.shape[-1], dtype=outputs.dtype)
    return Problem(model, Categorical(), train=(inputs, targets))
