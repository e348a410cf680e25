"""Figure 3, second part: which steps depend on the coordinates of the parameters.

A step in φ with θ = A φ is taken with the Fisher matrix of φ, AᵀFA, in which the method keeps what
its structure keeps; mapped back by A, it is compared with the step taken in θ. The exact natural
gradient is invariant under every A (where F is regular), each approximation under the maps its
structure is closed under. Source: R. Karakida, report, task 2-2.
"""

import itertools
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from kobai import seeds
from kobai.curvature import Fisher, Jacobian
from kobai.problem import EmpiricalRisk
from kobai.reproductions.wide_networks.spectra import objective_of
from kobai.results import Invariance

Method = Literal["full", "layer", "tridiagonal", "unit", "kronecker", "diagonal"]
"""Fisher structures of the source."""

METHODS: dict[str, Method | None] = {
    "gradient descent": None,
    "exact": "full",
    "layer-wise": "layer",
    "tri-diagonal": "tridiagonal",
    "unit-wise": "unit",
    "K-FAC": "kronecker",
    "entry-wise": "diagonal",
}
MAPS = (
    "scales of parameters",
    "inside each unit",
    "inside each layer",
    "inputs and outputs of layers",
    "all parameters",
)
_WIDTHS = (5, 6, 4, 2)
_EXAMPLES = 200


class _Between(nn.Module):
    """h ↦ h Mᵀ with a fixed M."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, h: Tensor) -> Tensor:
        """One product."""
        return h @ self.matrix.T


def invariance(*, seed: int, draws: int = 5, scale: float = 0.5) -> Invariance:
    """Measure every method under every kind of map, on a network with a regular Fisher matrix.

    Args:
        seed: Of networks and maps.
        draws: Networks and maps to average over.
        scale: Size of the maps: A = I + scale · Gaussian/√n, scales exp(2 · scale · Gaussian).

    Returns:
        Relative changes. K-FAC exists only in coordinates that are weight matrices, so under the
        other maps it has none.
    """
    found = np.full((draws, len(METHODS), len(MAPS)), np.nan)
    for draw in range(draws):
        g = seeds.generator(seed, f"invariance {draw}")
        objective = _objective(g)
        jacobian = Jacobian(objective).dense()
        gradient = objective.grad(objective.theta())
        exact = Fisher(objective, "full").dense()
        for i, structure in enumerate(METHODS.values()):
            step = _solve(objective, structure, gradient)
            kept = _mask(objective, structure)
            for j, kind in enumerate(MAPS):
                if kind == "inputs and outputs of layers":
                    moved = _kronecker_step(objective, structure, scale, g)
                elif structure == "kronecker":
                    continue
                else:
                    matrix = _map(objective, kind, scale, g)
                    turned = matrix.T @ exact @ matrix
                    inner = matrix.T @ gradient
                    if structure is not None:
                        inner = torch.linalg.solve(turned * kept, inner)
                    moved = matrix @ inner
                change = (jacobian @ (moved - step)).norm() / (jacobian @ step).norm()
                found[draw, i, j] = float(change)
    return Invariance(
        title="Figure 3: change of one step by a change of coordinates",
        methods=tuple(METHODS),
        maps=MAPS,
        change=found.mean(0),
    )


def _objective(g: torch.Generator) -> EmpiricalRisk:
    """A small tanh network whose Fisher matrix has full rank."""
    parts: list[nn.Module] = []
    for i, (fan_in, units) in enumerate(itertools.pairwise(_WIDTHS)):
        layer = nn.Linear(fan_in, units, dtype=torch.float64, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.normal_(generator=g).mul_(1.2 / fan_in**0.5)
            layer.bias.normal_(generator=g).mul_(0.3)
        parts += [layer] if i == len(_WIDTHS) - 2 else [layer, nn.Tanh()]
    x = torch.randn(_EXAMPLES, _WIDTHS[0], generator=g, dtype=torch.float64)
    y = torch.randn(_EXAMPLES, _WIDTHS[-1], generator=g, dtype=torch.float64)
    return objective_of(nn.Sequential(*parts), x, y)


def _solve(objective: EmpiricalRisk, structure: Method | None, gradient: Tensor) -> Tensor:
    """The method's undamped step."""
    if structure is None:
        return gradient
    return torch.linalg.solve(Fisher(objective, structure).dense(), gradient)


def _mask(objective: EmpiricalRisk, structure: Method | None) -> Tensor:
    """1 where the structure keeps an entry of the Fisher matrix."""
    size = objective.theta().numel()
    if structure is None or structure in ("full", "kronecker"):
        return torch.ones(size, size, dtype=torch.float64)
    return (Fisher(objective, structure).dense() != 0).double()


def _map(objective: EmpiricalRisk, kind: str, scale: float, g: torch.Generator) -> Tensor:
    """A random regular map of a kind."""
    size = objective.theta().numel()
    noise = torch.randn(size, size, generator=g, dtype=torch.float64)
    if kind == "scales of parameters":
        return torch.diag(torch.exp(2 * scale * noise.diagonal()))
    patterns: dict[str, Callable[[], Tensor]] = {
        "inside each unit": lambda: _mask(objective, "unit"),
        "inside each layer": lambda: _mask(objective, "layer"),
        "all parameters": lambda: torch.ones(size, size, dtype=torch.float64),
    }
    pattern = patterns[kind]()
    within = pattern.sum(1, keepdim=True).sqrt()
    return torch.eye(size, dtype=torch.float64) + scale * noise * pattern / within


def _kronecker_step(
    objective: EmpiricalRisk, structure: Method | None, scale: float, g: torch.Generator
) -> Tensor:
    """The step of the network u = P (V Q h + c), whose parameters are V and c, in terms of W, b."""

    def regular(size: int) -> Tensor:
        noise = torch.randn(size, size, generator=g, dtype=torch.float64)
        return torch.eye(size, dtype=torch.float64) + scale * noise / size**0.5

    parts: list[nn.Module] = []
    maps: list[tuple[Tensor, Tensor]] = []
    module = objective.model
    assert isinstance(module, nn.Sequential)
    for part in module:
        if not isinstance(part, nn.Linear):
            parts.append(part)
            continue
        left, right = regular(part.out_features), regular(part.in_features)
        inner = nn.Linear(
            part.in_features, part.out_features, dtype=torch.float64, device="meta"
        ).to_empty(device="cpu")
        with torch.no_grad():
            inner.weight.copy_(torch.linalg.solve(left, part.weight) @ torch.linalg.inv(right))
            inner.bias.copy_(torch.linalg.solve(left, part.bias))
        parts += [_Between(right), inner, _Between(left)]
        maps.append((left, right))
    (batch,) = objective.batches
    assert isinstance(batch.inputs, Tensor)
    turned = objective_of(nn.Sequential(*parts), batch.inputs, batch.targets)
    step = _solve(turned, structure, turned.grad(turned.theta()))
    found, start = [], 0
    for left, right in maps:
        rows, columns = len(left), len(right)
        v = step[start : start + rows * columns].view(rows, columns)
        c = step[start + rows * columns : start + rows * (columns + 1)]
        found += [(left @ v @ right).flatten(), left @ c]
        start += rows * (columns + 1)
    return torch.cat(found)
