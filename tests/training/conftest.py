"""A small classification problem with its three splits, in float64, new for every call."""

import pytest
import torch
from torch import nn

from kobai import Problem


def _fill(model: nn.Module, seed: int) -> nn.Module:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source, dtype=p.dtype) * 0.4)
    return model


@pytest.fixture
def make_problem():
    """Make a problem: two classes cut by a curve, N training and 30 other examples a split."""

    def make(*layers: nn.Module, examples: int = 50, seed: int = 0) -> Problem:
        with torch.random.fork_rng():
            hidden = layers or (nn.Tanh(),)
            model = nn.Sequential(nn.Linear(3, 8), *hidden, nn.Linear(8, 2)).double()
        _fill(model, seed)
        source = torch.Generator().manual_seed(100)

        def draw(count: int):
            x = torch.randn(count, 3, generator=source, dtype=torch.float64)
            noise = 0.3 * torch.randn(count, generator=source, dtype=torch.float64)
            return x, (x[:, 0] + x[:, 1] ** 2 + noise > 0.5).long()

        return Problem(
            model, "categorical", train=draw(examples), validation=draw(30), test=draw(30)
        )

    return make
