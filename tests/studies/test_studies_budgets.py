"""Equal budgets: what is counted, what a budget cuts, and what tables and verdicts say of it."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from kobai import data, optim
from kobai.optim import OPTIMIZERS
from kobai.plots import panels
from kobai.problem import surfaces
from kobai.results import UNITS, BudgetRun, BudgetRuns, Look, identical, load
from kobai.studies import Interrupted, RunSpec, StudyTraining, performance_profile, tabulate
from kobai.studies.budgets import (
    PRODUCT,
    VALUE,
    Budget,
    Method,
    cost_to,
    cut,
    evaluations,
    run_within,
    start_network,
    start_surface,
)
from kobai.studies.setting import Setting
from kobai.studies.suite import (
    BOOK_METHODS,
    TOLERANCE,
    method_named,
    problems,
    run_method,
    run_suite,
    tabulate_budget,
)
from kobai.studies.suite_claims import CLAIMS, conclude, profiles, shares

SMALL = Budget(steps=6, gradients=4.0, seconds=1e-3)


@pytest.fixture
def splits():
    """Three blobs, 60 examples."""
    return data.load("blobs", limit=(60, 30))


def _quadratic(draw):
    return surfaces.quadratic(10.0, 3, generator=draw)


def test_every_budget_is_spent_and_no_more_than_a_block_beyond():
    run = run_within(start_surface(_quadratic, 0), method_named("adam"), SMALL)
    assert run.status == "budget"
    for unit, amount in zip(UNITS, (6, 4.0, 1e-3), strict=True):
        assert run.spent(unit)[-1] >= amount
        assert (np.diff(run.spent(unit)) > 0).all()


def test_minibatches_count_their_share_of_a_gradient(splits):
    setting = Setting(splits=splits, model="mlp", dtype=torch.float64)
    started = start_network(setting, 0, batch_size=25)
    run = run_within(started, method_named("sgd"), Budget(steps=6, gradients=2.0, seconds=1e-9))
    # 60 examples in batches of 25, 25 and 10: three steps are one gradient.
    np.testing.assert_allclose(run.evaluations[:4], [0, 25 / 60, 50 / 60, 1], rtol=1e-12)
    assert run.evaluations[-1] == pytest.approx(2.0)


def test_the_loss_is_that_of_all_data_before_and_after_every_step(splits):
    setting = Setting(splits=splits, model="mlp", dtype=torch.float64)
    started = start_network(setting, 0, batch_size=20)
    start = float(started.whole.value(started.whole.theta()))
    run = run_within(started, method_named("sgd"), SMALL)
    assert run.loss[0] == start
    assert run.loss[-1] == float(started.whole.value(started.whole.theta()))
    assert run.accuracy[-1] == started.accuracy()


def test_evaluations_are_multiples_of_what_was_asked():
    objective = surfaces.rosenbrock().objective()
    optimizer = optim.Newton(objective.space.module)
    for _ in range(3):
        optimizer.step(objective)
    told = optimizer.diagnostics()
    assert (told["gradients"], told["products"]) == (3, 6)
    expected = 3 + VALUE * told["values"] + PRODUCT * 6
    assert evaluations(optimizer, 0) == pytest.approx(expected)
    plain = torch.optim.LBFGS(objective.space.module.parameters())
    assert evaluations(plain, 7) == 7.0


def test_methods_that_do_not_count_are_refused(splits):
    setting = Setting(splits=splits, model="mlp", dtype=torch.float64)
    with pytest.raises(ValueError, match="does not count"):
        run_within(start_network(setting, 0, batch_size=20), method_named("hessian-free"), SMALL)


def test_stationary_methods_end_and_diverging_ones_are_cut_at_infinity():
    still = run_within(start_surface(_quadratic, 0), method_named("newton"), Budget(steps=500))
    assert still.status == "stationary"
    assert still.loss[-1] < 1e-20
    lost = run_within(start_surface(_quadratic, 0), method_named("sgd"), SMALL, rate=1e3)
    assert lost.status == "diverged"
    assert cut(lost, "steps", 1e9)[0] == math.inf


def _run(steps, losses, *, seed=0, rate=1.0, status="budget"):
    steps = np.array(steps)
    return BudgetRun(
        rate=rate, seed=seed, status=status, step=steps, evaluations=2.0 * steps,
        seconds=0.1 * steps, loss=np.array(losses), accuracy=np.linspace(0, 1, len(steps)),
    )  # fmt: skip


def test_cuts_are_read_off_the_last_record_within_budget():
    run = _run([0, 1, 2, 5], [4.0, 3.0, 2.0, 1.0])
    assert cut(run, "steps", 4) == (2.0, pytest.approx(2 / 3))
    assert cut(run, "gradient evaluations", 10)[0] == 1.0
    assert cut(run, "CPU seconds", 0.05)[0] == 4.0
    assert cost_to(run, "gradient evaluations", 100, 3.0) == 2.0
    assert cost_to(run, "CPU seconds", 0.15, 2.0) == math.inf
    lost = _run([0, 1, 2], [4.0, 3.0, 1e9], status="diverged")
    assert cut(lost, "steps", 1)[0] == 3.0
    assert cut(lost, "steps", 2)[0] == math.inf


def test_tables_put_methods_rates_problems_and_seeds_in_their_places():
    """Two methods on one problem and two seeds; the target is 5 % above the lowest loss of all."""
    made = {
        ("p", "sgd"): BudgetRuns(
            problem="p", method="sgd", tuned=3.0, tried={"1": 1.0, "3": 0.5},
            runs=tuple(_run([0, 1, 2], [1.0, 0.5, end], seed=s, rate=r)
                       for r, end in ((1.0, 0.4), (3.0, 0.02)) for s in (0, 1)),
        ),
        ("p", "bfgs"): BudgetRuns(
            problem="p", method="bfgs", tried={},
            runs=tuple(_run([0, 1, 2], [1.0, 0.01, 0.0], seed=s) for s in (0, 1)),
        ),
    }  # fmt: skip
    table = tabulate_budget(made, {"p": True}, {"p": [math.nan] * 2}, "steps", 2.0)
    assert table.loss.shape == (2, 2, 1, 2)
    assert table.loss[0, :, 0, 0].tolist() == [0.4, 0.02]
    assert table.loss[1, :, 0, 1].tolist() == [0.0, 0.0]
    assert table.rate.tolist() == [[3.0], [1.0]]
    assert table.cost[:, :, 0, 0].tolist() == [[math.inf, 2.0], [1.0, 1.0]]
    assert table.tolerance == TOLERANCE
    known = tabulate_budget(made, {"p": False}, {"p": [-9.0] * 2}, "steps", 2.0)
    # The target lies 5 % above a minimum of -9, where nobody came.
    assert (known.cost == math.inf).all()


def test_profiles_are_those_of_the_costs(tmp_path, splits):
    starts = problems(splits, batch_size=20, chosen=("softmax", "quadratic"))
    methods = [method_named(n) for n in ("sgd", "rmsprop-momentum", "lbfgs", "newton")]
    told = []
    tables = run_suite(starts, methods, SMALL, tmp_path, seeds=2, seed=0, report=told.append)
    assert len(told) == 8
    assert [t.unit for t in tables] == list(UNITS)
    assert tables[0].networks == (True, False)
    share = shares(tables[0], networks=True, tuned=True)
    profile = performance_profile(tables[0].cost[:, 1, 0], np.array([4.0]))
    assert list(share.values()) == profile[:, 0].tolist()
    for networks, all_data in itertools.product((True, False), repeat=2):
        drawn = profiles(tables, networks=networks, tuned=True, all_data=all_data)
        assert len(panels(drawn).axes) == 3
        for panel in drawn.panels:
            names = [s.label for s in panel.series if s.label]
            assert names == (["lbfgs", "newton"] if all_data else ["sgd", "rmsprop-momentum"])
            assert all((np.diff(s.y) >= 0).all() for s in panel.series)
    record = conclude(tables, seed=0, seconds=1.0)
    assert {v.claim for v in record.verdicts} == {c.key for c in CLAIMS}


def test_finished_pairs_are_kept_and_damaged_ones_made_again(tmp_path, splits):
    starts = problems(splits, batch_size=20, chosen=("softmax",))
    methods = [method_named(n) for n in ("sgd", "lbfgs")]
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        run_suite(starts, methods, SMALL, tmp_path, seeds=1, seed=0, stop=lambda: next(asked))
    first = load(tmp_path, "runs_softmax_sgd")
    told = []
    run_suite(starts, methods, SMALL, tmp_path, seeds=1, seed=0, report=told.append)
    assert told == ["softmax: lbfgs"]
    assert identical(first, load(tmp_path, "runs_softmax_sgd"))
    (tmp_path / "runs_softmax_sgd.json").write_text("{")
    told.clear()
    run_suite(starts, methods, SMALL, tmp_path, seeds=1, seed=0, report=told.append)
    assert told == ["softmax: sgd"]


def test_the_grid_is_judged_on_a_seed_that_counts_for_nothing_else(splits):
    starts = problems(splits, batch_size=20, chosen=("softmax",))
    start, _ = starts["softmax"]
    seen = []
    made = run_method(
        lambda seed: (seen.append(seed), start(seed))[1], method_named("sgd"), "softmax", SMALL,
        seeds=2, seed=5,
    )  # fmt: skip
    assert seen[:7] == [7] * 7
    assert set(seen[7:]) == {5, 6}
    assert made.tuned == float(min(made.tried, key=lambda f: made.tried[f]))
    assert [r.seed for r in made.at(1.0)] == [5, 6]


def test_all_of_the_chapters_methods_are_there():
    for name in BOOK_METHODS:
        assert method_named(name).on_all_data == (
            name in OPTIMIZERS and OPTIMIZERS[name].on_all_data
        )
    with pytest.raises(ValueError, match="unknown optimizer"):
        method_named("rprop")


def test_an_optimizer_of_ones_own_joins_the_suite(splits):
    mine = dataclasses.replace(OPTIMIZERS["sgd"], name="mine", label="my own", color="#123456")
    method, named = Method(name="mine", optimizer=mine), method_named("sgd")
    setting = Setting(splits=splits, model="linear", dtype=torch.float64)
    made, same = (
        run_within(start_network(setting, 0, batch_size=20), m, SMALL) for m in (method, named)
    )
    few = min(len(made.loss), len(same.loss))
    np.testing.assert_array_equal(made.loss[:few], same.loss[:few])
    with pytest.raises(ValueError, match="choose from"):
        Method(name="x", optimizer="rprop").entry  # noqa: B018


def test_a_run_brings_its_optimizers_look(splits):
    mine = dataclasses.replace(OPTIMIZERS["sgd"], name="mine", label="my own", color="#123456")
    setting = Setting(splits=splits, model="linear")
    history = setting.train(mine, mine.config(), StudyTraining(epochs=1, batch_size=20), seed=0)
    assert (history.optimizer, history.look) == ("mine", Look(label="my own", color="#123456"))
    spec = RunSpec(optimizer=mine, config=mine.config(), seed=0)
    assert spec.label == "mine-s0"
    assert tabulate(setting, [history], {}, title="t", model="linear").rows[0].look == history.look


def test_a_network_of_ones_own_joins_the_suite(splits):
    starts = problems(splits, batch_size=20, model="mlp", chosen=("quadratic",))
    assert list(starts) == ["mlp", "quadratic"]
    with pytest.raises(ValueError, match="unknown problem"):
        problems(splits, batch_size=20, chosen=("banana",))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"gradients": -1.0}, {"seconds": math.inf}])
def test_impossible_budgets_are_refused(wrong):
    with pytest.raises(ValueError, match="budget"):
        Budget(**wrong)
