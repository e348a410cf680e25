"""Automatic damping of optimizers that are handed the objective: the noise of minibatches."""

import copy
import dataclasses
import io
import math

import pytest
import torch

import cases
from kobai.optim import GaussNewton, HessianFree, LevenbergMarquardt, NaturalGradient
from kobai.optim.damping import ReductionRatio, reduction_ratio
from kobai.problem import Batch

KINDS = [NaturalGradient, GaussNewton, HessianFree]


def _halves(problem):
    """Two minibatches of a problem's data."""
    (batch,) = problem.objective().batches
    half = batch.size // 2
    return [batch.take(slice(0, half)), batch.take(slice(half, 2 * half))]


def _losses(problem, batch, theta):
    return problem.likelihood.nll(problem.objective(batch).outputs(theta), batch.targets)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_of_fresh_examples_is_theirs_at_both_ends_of_the_step(kind):
    problem = cases.problem("mlp")
    first, second = _halves(problem)
    optimizer = kind(problem.model, problem.likelihood)
    old = problem.space.theta()
    optimizer.step(problem.objective(first))
    (own,) = optimizer.diagnostics()["decisions"]
    assert own["fresh_ratio"] is None
    new = problem.space.theta()
    optimizer.step(problem.objective(second))
    told = optimizer.diagnostics()["decisions"][0]
    change = _losses(problem, second, new) - _losses(problem, second, old)
    assert told["fresh_ratio"] == pytest.approx(float(change.mean()) / own["predicted"])
    spread = float((change - change.mean()).square().sum())
    count = len(change)
    expected = math.sqrt(spread / (count - 1) / count) / -own["predicted"]
    assert told["fresh_error"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_data_again_is_not_fresh(kind):
    """However it is cut, ordered and wrapped, as a loader does every epoch."""
    problem = cases.problem("mlp")
    (batch,) = problem.objective().batches
    optimizer = kind(problem.model, problem.likelihood)
    turned = Batch(batch.inputs.flip(0), batch.targets.flip(0))
    for objective in (
        problem.objective(),
        problem.objective(turned),
        problem.objective(chunk=4),
        problem.objective(),
    ):
        optimizer.step(objective)
    assert all(d["fresh_ratio"] is None for d in optimizer.diagnostics()["decisions"])


@pytest.mark.parametrize("kind", KINDS)
def test_minibatches_resume_and_copy_to_the_bit(kind):
    """Stopped between a step and its judgement by fresh examples."""
    problem = cases.problem("mlp")
    halves = _halves(problem)
    optimizer = kind(problem.model, problem.likelihood)
    for k in range(3):
        optimizer.step(problem.objective(halves[k % 2]))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(problem)
    resumed = kind(twin.model, twin.likelihood)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    third, copied = copy.deepcopy((problem, optimizer))
    runs = [(problem, optimizer), (twin, resumed), (third, copied)]
    for k in range(3, 6):
        for p, o in runs:
            o.step(p.objective(halves[k % 2]))
    for p, o in runs[1:]:
        assert torch.equal(p.space.theta(), problem.space.theta())
        assert o.diagnostics() == optimizer.diagnostics()
    assert sum(d["fresh_ratio"] is not None for d in optimizer.diagnostics()["decisions"]) >= 5


def _ratio(value, error=0.0):
    return ReductionRatio(actual=-value, predicted=-1.0, value=value, error=error)


@pytest.mark.parametrize(
    ("damping", "fresh", "following", "action"),
    [
        (0.1, _ratio(0.9, 0.1), 0.05, "lowered"),  # confirmed
        (0.1, _ratio(0.8, 0.1), 0.1, "noise"),  # perhaps
        (0.1, _ratio(0.0, 0.1), 0.2, "noise"),  # no help: back up to the first value
        (0.7, _ratio(0.0, 0.1), 1.0, "noise"),  # and not beyond
        (1.0, _ratio(0.0, 0.1), 1.0, "noise"),
        (4.0, _ratio(0.2, 0.1), 2.0, "noise"),  # no harm: back down
        (4.0, _ratio(0.0, 0.1), 4.0, "noise"),
        (4.0, _ratio(-0.2, 0.1), 8.0, "raised"),  # harm
        (0.1, _ratio(-0.2, 0.3), 0.2, "noise"),  # harm within its error
        (0.1, _ratio(-math.inf), 0.2, "raised"),
        (0.1, _ratio(0.9, math.inf), 0.1, "noise"),  # one example tells nothing
    ],
)
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_what_fresh_examples_do_to_a_damping_that_wants_to_fall(
    noise, damping, fresh, following, action
):
    rule = LevenbergMarquardt(initial=1.0, raise_by=2.0, lower_by=0.5, noise=noise)
    assert rule.decide(damping, _ratio(1.0)) == (damping / 2, "lowered")
    assert rule.decide(damping, _ratio(1.0), fresh) == (following, action)


def test_a_step_that_breaks_fresh_examples_raises_the_damping():
    rule = LevenbergMarquardt()
    one = torch.ones(4, dtype=torch.float64)
    broken = reduction_ratio(one, one / 0.0, -one, 4.0)
    assert rule.decide(0.1, _ratio(1.0), broken) == rule.raised(0.1)


def test_pure_noise_does_not_lower_the_damping(generator):
    """Labels that nothing explains: own examples confirm every step, fresh ones never do."""
    problem = cases.problem("mlp")
    rule = dataclasses.replace(LevenbergMarquardt(), initial=0.1)
    (batch,) = problem.objective().batches
    width = batch.inputs.shape[1]
    ends = []
    for repeated in (True, False):
        twin = copy.deepcopy(problem)
        seeded = torch.Generator().manual_seed(4)
        optimizer = NaturalGradient(twin.model, twin.likelihood, damping=rule, kl_bound=0.1)
        data = None
        for _ in range(30):
            if data is None or not repeated:
                x = torch.randn(16, width, generator=seeded, dtype=torch.float64)
                data = Batch(x, torch.randint(0, 3, (16,), generator=seeded))
            optimizer.step(twin.objective(data))
        ends.append(optimizer.param_groups[0]["damping"])
    assert ends[0] < 0.1 * rule.initial
    assert ends[1] > 0.5 * rule.initial
