"""K-FAC for a stack of fully connected networks, settings of its own for every network.

What `kobai.optim.KFAC` does with sampled labels and numbers for learning rate and damping, with two
savings that change nothing but rounding: gradients of low rank are preconditioned factor by factor,
and second moments of inputs that all networks share are diagonalised once for all of them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from kobai import seeds
from kobai.curvature.blocks import KroneckerFactors
from kobai.curvature.blocks.interface import flush_, past_weight
from kobai.curvature.blocks.shifted_inverse import shifted_inverse
from kobai.optim.kfac.cotangents import cotangents
from kobai.optim.kfac.settings import FIXED_BOUND, INVERSE_DENSITY, STATISTICS_DENSITY, due
from kobai.problem import Problem
from kobai.studies.linear_stack import LinearStack
from kobai.studies.stacked import Gradient, Stack

Networks = Stack | LinearStack

_FLUSH_EVERY = 20


def column(configs: Sequence[Any], name: str, stack: Networks) -> Tensor:
    """A setting of every network, (T, 1, 1)."""
    values = [float(getattr(config, name, 0.0)) for config in configs]
    return torch.tensor(values).to(stack.weights[0]).view(-1, 1, 1)


@final
class StackedKFAC:
    """K-FAC with sampled labels for T networks.

    Args:
        problem: Its likelihood draws the labels.
        configs: Settings of each network.
        stack: The networks.
        seed: Of the labels; all networks see the same random numbers.
    """

    def __init__(
        self, problem: Problem, configs: Sequence[Any], stack: Networks, seed: int
    ) -> None:
        self._likelihood = problem.likelihood
        self._config = configs[0]
        self._lr = column(configs, "lr", stack)
        self._momentum = column(configs, "momentum", stack)
        self._decay = column(configs, "weight_decay", stack)
        self._damping = [float(config.damping) for config in configs]
        bounds = [FIXED_BOUND if c.kl_bound == "auto" else c.kl_bound for c in configs]
        self._bound = torch.tensor([math.inf if b is None else b for b in bounds]).to(self._lr)
        self._bounded = any(math.isfinite(b) for b in self._bound.tolist())
        self._generator = seeds.generator(seed, "labels")
        self._layers = [_Layer.of(weight) for weight in stack.weights]
        self._steps, self._updates = 0, 0
        self._statistics_step: int | None = None
        self._inverse_step: int | None = None

    def step(self, stack: Networks, run: Any, gradients: list[Gradient], factor: Tensor) -> None:
        """Make one step; `factor` (T,) multiplies the learning rates."""
        config = self._config
        renewed = False
        if due(self._steps, self._statistics_step, config.statistics_every, STATISTICS_DENSITY):
            self._gather(stack, run)
            self._statistics_step = self._steps
            renewed = due(self._steps, self._inverse_step, config.inverse_every, INVERSE_DENSITY)
            if renewed:
                for layer in self._layers:
                    layer.invert(self._damping)
                self._inverse_step = self._steps
        if self._steps % _FLUSH_EVERY == 0:
            for layer in self._layers:
                layer.flush()
        self._move(stack, gradients, self._lr * factor.view(-1, 1, 1), renewed)
        self._steps += 1

    def _move(
        self, stack: Networks, gradients: list[Gradient], rate: Tensor, renewed: bool
    ) -> None:
        size = torch.zeros_like(self._bound)
        for layer, gradient in zip(self._layers, gradients, strict=True):
            layer.turn(gradient, self._momentum, renewed)
            if self._bounded:
                size += (layer.momentum * layer.direction).sum((1, 2))
        scale = torch.ones_like(rate)
        if self._bounded:
            size *= rate.flatten() ** 2
            scale = torch.where(size > self._bound, (self._bound / size).sqrt(), 1.0).view(-1, 1, 1)
        for weight, layer in zip(stack.weights, self._layers, strict=True):
            weight.mul_(1 - rate * self._decay)
            weight.addcmul_(scale * rate, layer.direction, value=-1)

    def _gather(self, stack: Networks, run: Any) -> None:
        """Second moments at labels drawn from each network; all see the same random numbers."""
        state = self._generator.get_state()
        columns, weight = [], 1.0
        for outputs in run.outputs:
            self._generator.set_state(state)
            weight, drawn = cotangents(
                self._likelihood,
                "sampled",
                outputs,
                torch.ones_like(outputs),
                damping=self._config.output_damping,
                generator=self._generator,
                signs=False,
            )
            columns.extend(drawn)
        self._updates += 1
        past = past_weight(self._updates)
        found = stack.moments(run, torch.stack(columns), weight)
        for layer, (a, b) in zip(self._layers, found, strict=True):
            layer.inputs = a if self._updates == 1 else layer.inputs.mul_(past).add_(a * (1 - past))
            layer.outputs.mul_(past).add_(b, alpha=1 - past)


@dataclasses.dataclass(eq=False)
class _Layer:
    """One layer of all networks.

    Attributes:
        momentum: Running sum of gradients, (T, M, K).
        direction: The same, preconditioned.
        inputs: A, (T, K, K), or (K, K) where all networks have the same inputs.
        outputs: B, (T, M, M).
        output_inverses: (B + …)⁻¹.
        input_inverses: (A + …)⁻¹, (T, K, K); where A is shared its eigenvectors, (K, K).
        scales: Where A is shared the eigenvalues of its inverses, (T, 1, K).
    """

    momentum: Tensor
    direction: Tensor
    inputs: Tensor
    outputs: Tensor
    output_inverses: Tensor
    input_inverses: Tensor
    scales: Tensor | None = None

    @classmethod
    def of(cls, weight: Tensor) -> "_Layer":
        """At the start: no curvature, no momentum."""
        count, m, k = weight.shape
        return cls(
            momentum=torch.zeros_like(weight),
            direction=torch.zeros_like(weight),
            inputs=weight.new_zeros(k, k),
            outputs=weight.new_zeros(count, m, m),
            output_inverses=weight.new_zeros(count, m, m),
            input_inverses=weight.new_zeros(count, k, k),
        )

    def turn(self, gradient: Gradient, momentum: Tensor, renewed: bool) -> None:
        """Take a gradient in; `renewed` says that the inverses are new."""
        gradient.add_to(self.momentum.mul_(momentum))
        if gradient.is_thin() and not renewed:
            # While the inverses stay, momentum and preconditioning change places.
            turned = Gradient(
                left=gradient.left @ self.output_inverses, right=self._by_inputs(gradient.right)
            )
            turned.add_to(self.direction.mul_(momentum))
        else:
            self.direction = torch.bmm(self.output_inverses, self._by_inputs(self.momentum))

    def _by_inputs(self, rows: Tensor) -> Tensor:
        """Rows (T, R, K), or (R, K) for all networks, times the inverses of A."""
        if self.scales is None:
            return rows @ self.input_inverses
        return ((rows @ self.input_inverses) * self.scales) @ self.input_inverses.T

    def invert(self, dampings: Sequence[float]) -> None:
        """Renew the inverses of every network whose factors are finite."""
        count, shared = len(self.outputs), self.inputs.ndim == 2
        values = None
        if shared:
            values, self.input_inverses = torch.linalg.eigh(self.inputs)
            if self.scales is None:
                self.scales = self.inputs.new_zeros(count, 1, len(values))
        for damping in dict.fromkeys(dampings):
            chosen = torch.tensor([d == damping for d in dampings]).nonzero().squeeze(1)
            a = self.inputs.expand(count, -1, -1) if shared else self.inputs
            factors = KroneckerFactors(inputs=a[chosen], outputs=self.outputs[chosen])
            if values is None or self.scales is None:
                found = factors.inverse(damping)
                good = found.status < 3
                self.input_inverses[chosen[good]] = found.inputs[good]
                self.output_inverses[chosen[good]] = found.outputs[good]
            else:
                balance, root = factors.balance(damping), math.sqrt(damping)
                inverse, status = shifted_inverse(factors.outputs, root / balance)
                good = status < 3
                scales = 1.0 / (values.clamp(min=0.0) + (balance * root).unsqueeze(1))
                self.scales[chosen[good]] = scales[good].unsqueeze(1)
                self.output_inverses[chosen[good]] = inverse[good]

    def flush(self) -> None:
        """Set what has decayed to subnormal numbers to zero."""
        for tensor in (self.inputs, self.outputs, self.momentum, self.direction):
            flush_(tensor)
