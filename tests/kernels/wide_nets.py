"""Random perceptrons in both parameterisations, drawn as wide-network theory draws them."""

import itertools
import math

import torch
from torch import Tensor, nn

from kobai import Problem
from kobai.problem import EmpiricalRisk

PHI = {"linear": lambda u: u, "relu": torch.relu, "erf": torch.erf, "tanh": torch.tanh}


class Activation(nn.Module):
    """One of the activations by name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = PHI[name]

    def forward(self, u: Tensor) -> Tensor:
        return self.function(u)


class Extended(nn.Module):
    """h ↦ [√(s_w/M) h ; √s_b]: a linear layer of N(0, 1) weights on it is an NTK layer."""

    def __init__(self, width: int, s_w: float, s_b: float) -> None:
        super().__init__()
        self.scale, self.bias = math.sqrt(s_w / width), math.sqrt(s_b)

    def forward(self, h: Tensor) -> Tensor:
        constant = torch.full_like(h[:, :1], self.bias)
        return torch.cat([self.scale * h, constant], 1)


def wide_net(widths, phi, *, s_w=2.0, s_b=0.1, seed=0, ntk=True):
    """The network and the generator it was drawn from."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for fan_in, width in itertools.pairwise(widths):
        if ntk:
            layer = nn.utils.skip_init(nn.Linear, fan_in + 1, width, bias=False)
            layers.append(Extended(fan_in, s_w, s_b))
        else:
            layer = nn.utils.skip_init(nn.Linear, fan_in, width)
        layer = layer.double()
        with torch.no_grad():
            layer.weight.normal_(generator=generator)
            if not ntk:
                layer.weight.mul_(math.sqrt(s_w / fan_in))
                layer.bias.normal_(generator=generator).mul_(math.sqrt(s_b))
        layers += [layer, Activation(phi)]
    return nn.Sequential(*layers[:-1]), generator


def wide_risk(widths, phi, examples, **settings) -> EmpiricalRisk:
    """Squared loss on N(0, 1) inputs and targets."""
    model, generator = wide_net(widths, phi, **settings)
    x = torch.randn(examples, widths[0], generator=generator, dtype=torch.float64)
    y = torch.randn(examples, widths[-1], generator=generator, dtype=torch.float64)
    return Problem(model, "gaussian", train=(x, y)).objective()


def inputs_of(risk: EmpiricalRisk) -> Tensor:
    return torch.cat([batch.inputs for batch in risk.batches])


def targets_of(risk: EmpiricalRisk) -> Tensor:
    return torch.cat([batch.targets for batch in risk.batches])
