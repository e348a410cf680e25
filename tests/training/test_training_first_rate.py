"""The first learning rate: on a quadratic, where stability has a closed form."""

import numpy as np
import pytest
import torch
from torch import nn

from kobai import Problem
from kobai.training import choose_first_rate


def _parabola(curvature=1.0):
    """½ c θ² as a network: one input √c, one weight, target 0; full-batch descent is stable below
    ε = 2/c, and lands at once at ε = 1/c."""
    model = nn.utils.skip_init(nn.Linear, 1, 1, bias=False).double()
    nn.init.constant_(model.weight, 3.0)
    x = torch.full((4, 1), curvature**0.5, dtype=torch.float64)
    return Problem(model, "gaussian", train=(x, torch.zeros_like(x)))


def _sgd(model, rate):
    return torch.optim.SGD(model.parameters(), lr=rate)


def _choose(problem, rates, **more):
    return choose_first_rate(problem, _sgd, rates, batch_size=4, steps=8,
                             generator=torch.Generator().manual_seed(0), **more)  # fmt: skip


@pytest.mark.parametrize("curvature", [0.5, 4.0])
def test_the_rate_above_the_best_is_taken_while_it_is_stable(curvature):
    found = _choose(_parabola(curvature), np.array([0.1, 1.0, 1.5, 3.0]) / curvature)
    assert found.best == pytest.approx(1.0 / curvature)
    assert found.chosen == pytest.approx(1.5 / curvature)
    assert found.stable == (True, True, True, False)


def test_the_best_is_kept_where_the_next_is_unstable_or_missing():
    assert _choose(_parabola(), [0.1, 1.0, 2.5]).chosen == 1.0
    assert _choose(_parabola(), [0.1, 1.0]).chosen == 1.0


def test_the_model_is_left_as_it_was():
    problem = _parabola()
    before = problem.space.theta()
    _choose(problem, [0.1, 1e200])
    assert torch.equal(before, problem.space.theta())


def test_losses_are_those_of_the_iterates():
    found = _choose(_parabola(), [0.5])
    # θ halves at every step; the losses of steps 7 and 8 are of θ = 3/2⁶ and 3/2⁷.
    assert found.loss[0] == pytest.approx(np.mean([0.5 * (3 / 2**k) ** 2 for k in (6, 7)]))


@pytest.mark.parametrize(
    ("rates", "message"), [([], "positive"), ([0.0], "positive"), ([1e200], "diverged")]
)
def test_wrong_rates_are_refused(rates, message):
    with pytest.raises(ValueError, match=message):
        _choose(_parabola(), rates)
