import math

import pytest
import torch
from torch.optim import lr_scheduler

from kobai.training import SCHEDULES, Constant, Cosine, LinearDecay, Schedule

TOTAL = 40


def _torch_rates(make, steps=TOTAL):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _rates(schedule: Schedule, steps=TOTAL, total=TOTAL):
    return [schedule.factor(k, total=total) for k in range(steps)]


def test_linear_decay_is_the_formula_then_constant():
    tau, fraction = 10, 0.01
    schedule = LinearDecay(until=tau, final_fraction=fraction)
    for k in range(25):
        alpha = k / tau
        expected = (1 - alpha) * 1.0 + alpha * fraction if k < tau else fraction
        assert schedule.factor(k, total=25) == pytest.approx(expected, rel=1e-14)
    assert schedule.factor(0, total=25) == 1.0
    assert schedule.factor(tau, total=25) == pytest.approx(fraction, rel=1e-14)


def test_linear_decay_equals_torch():
    ours = _rates(LinearDecay(until=15, final_fraction=0.2))
    theirs = _torch_rates(
        lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=15)
    )
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_cosine_equals_torch_and_stays_at_its_end():
    ours = _rates(Cosine(final_fraction=0.1), steps=TOTAL)
    theirs = _torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL, eta_min=0.1))
    assert ours == pytest.approx(theirs, rel=1e-10)
    assert _rates(Cosine(until=10), steps=30)[10:] == pytest.approx([0.0] * 20, abs=1e-15)
    assert Cosine(until=10).factor(5, total=1) == pytest.approx(0.5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_precedes_the_schedule(name):
    plain, warm = SCHEDULES[name](), SCHEDULES[name](warmup=5)
    rates = _rates(warm)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == pytest.approx(_rates(plain, steps=TOTAL - 5, total=TOTAL - 5))


def test_warm_up_equals_torch():
    theirs = _torch_rates(
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, start_factor=1 / 8, end_factor=1.0, total_iters=7),
                lr_scheduler.ConstantLR(o, factor=1.0),
            ],
            milestones=[8],
        )
    )
    assert _rates(Constant(warmup=8)) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_stay_within_zero_and_one_even_past_the_end(name):
    for factor in _rates(SCHEDULES[name](warmup=3), steps=3 * TOTAL):
        assert 0.0 <= factor <= 1.0
        assert math.isfinite(factor)


def test_a_warm_up_longer_than_the_run_is_only_a_warm_up():
    assert _rates(LinearDecay(warmup=100), steps=10, total=10)[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Constant(warmup=-1), "warmup"),
        (lambda: LinearDecay(until=0), "until"),
        (lambda: LinearDecay(final_fraction=1.5), "final_fraction"),
        (lambda: Cosine(final_fraction=-0.1), "final_fraction"),
    ],
)
def test_numbers_out_of_range_are_refused(make, word):
    with pytest.raises(ValueError, match=word):
        make()
