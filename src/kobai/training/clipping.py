"""Gradient clipping, and the closure an optimizer is stepped with.

Near a cliff of the loss the gradient is huge and one step may throw away much of what was learned;
clipping keeps the direction (by norm) or the sign (by value) and bounds the length (Goodfellow,
Bengio and Courville 2016, Deep Learning, sections 8.2.4 and 10.11.1).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from kobai.problem import Objective


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Clipping:
    """Bounds on the gradient an optimizer sees; with both, the value bound applies first.

    Attributes:
        norm: Bound on the Euclidean norm of the whole gradient, or None.
        value: Bound on the magnitude of each component, or None.

    Raises:
        ValueError: If a bound is not positive.
    """

    norm: float | int | None = None
    value: float | int | None = None

    def __post_init__(self) -> None:
        for name, bound in (("clip_norm", self.norm), ("clip_value", self.value)):
            if bound is not None and not (bound > 0 and math.isfinite(bound)):
                raise ValueError(
                    f"{name} must be positive and finite, got {bound}; None switches it off"
                )

    @property
    def active(self) -> bool:
        """Whether there is any bound."""
        return self.norm is not None or self.value is not None

    def apply(self, parameters: list[nn.Parameter]) -> None:
        """Clip the gradients in place."""
        if self.value is not None:
            nn.utils.clip_grad_value_(parameters, float(self.value))
        if self.norm is not None:
            nn.utils.clip_grad_norm_(parameters, float(self.norm))


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, shape (); missing ones count as 0."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


@final
class ClippedClosure:
    """An objective's closure that clips what it leaves in the gradients.

    An optimizer that needs more than loss and gradient cannot be clipped: it finds a bare closure
    in place of an objective and says so.

    Args:
        objective: The minibatch objective.
        clipping: The bounds.
        parameters: The parameters whose gradients are clipped together.
    """

    def __init__(
        self, objective: Objective, clipping: Clipping, parameters: list[nn.Parameter]
    ) -> None:
        self.objective = objective
        self.clipping = clipping
        self.parameters = parameters
        self.norm: Tensor | None = None

    def __call__(self) -> Tensor:
        """Loss and clipped gradients; keeps the norm before clipping in `norm`."""
        loss = self.objective()
        self.norm = gradient_norm(self.parameters)
        self.clipping.apply(self.parameters)
        return loss


def step(
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    clipping: Clipping,
    parameters: list[nn.Parameter],
) -> tuple[float, Callable[[], float]]:
    """One optimizer step on one minibatch objective.

    Returns:
        The loss before the step, and a function that gives the norm of the gradient the optimizer
        asked for last, before clipping (only worth its cost where it is recorded).

    Raises:
        TypeError: If the optimizer does not return the closure's loss.
    """
    if clipping.active:
        closure = ClippedClosure(objective, clipping, parameters)
        loss = optimizer.step(closure)  # type: ignore[arg-type]
    else:
        closure = None
        loss = optimizer.step(objective)  # type: ignore[arg-type]
    if loss is None:
        raise TypeError(
            f"{type(optimizer).__name__}.step(closure) returned None; it must call the closure and "
            "return its loss, as every torch optimizer does"
        )

    def norm() -> float:
        known = None if closure is None else closure.norm
        return float(gradient_norm(parameters) if known is None else known)

    return float(loss), norm
