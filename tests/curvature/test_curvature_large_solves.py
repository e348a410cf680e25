"""Fisher solves beyond dense systems: conjugate gradients take over by themselves."""

import pytest
import torch

import cases
from kobai.curvature import Fisher
from kobai.curvature.structures import full
from kobai.linalg import IterativeInverse
from tolerances import assert_close


@pytest.mark.parametrize("labels", ["exact", "sampled", "observed"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_beyond_the_limit_solves_are_iterative(monkeypatch, name, labels):
    objective = cases.objective(name)
    b = torch.linspace(-1, 1, objective.space.dimension, dtype=torch.float64)
    direct = Fisher(objective, "full", labels=labels, generator=torch.Generator().manual_seed(0))
    expected = direct.solve(b, 0.1)
    monkeypatch.setattr(full, "LARGEST_SYSTEM", 5)
    fisher = Fisher(objective, "full", labels=labels, generator=torch.Generator().manual_seed(0))
    assert_close(fisher.solve(b, 0.1), expected, 1e-5)
    inverse = fisher.inverse(0.1)
    assert inverse.status == "ok"
    assert isinstance(inverse.operator, IterativeInverse)
    assert 0 < inverse.operator.num_products <= len(b)
    assert "conjugate gradients" in str(fisher.coverage())
