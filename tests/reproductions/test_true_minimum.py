"""The study of true minima: the source's networks, its rules, and a run of the whole in small."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from kobai import models, plots, reproductions
from kobai.models import MLPConfig
from kobai.reproductions import true_minimum as study
from kobai.reproductions.true_minimum import config as configuration
from kobai.reproductions.true_minimum.config import SETTINGS, Config
from kobai.reproductions.true_minimum.descent import DescentStart, descend
from kobai.reproductions.true_minimum.descent import judge as judge_descents
from kobai.reproductions.true_minimum.landscape import judge as judge_landscapes
from kobai.reproductions.true_minimum.networks import NETWORKS, architecture, bench, parameters
from kobai.reproductions.true_minimum.solutions import _Watch, epochs_to, solve
from kobai.reproductions.true_minimum.solutions import judge as judge_solutions
from kobai.results import (
    Descent,
    Descents,
    Ensemble,
    MinimumProof,
    Smoothness,
    Solution,
    SolutionTable,
    load,
    result_names,
)
from kobai.studies import Interrupted

TINY = dataclasses.replace(
    SETTINGS["quick"], images=30, test_images=20, epochs=3, examples=20, nodes=5, ensemble=(2, 5),
    products=8, descent_epochs=3, others=1, radii=(0.1,), curve_steps=3, width=0.05,
    batch_size=16,
)  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(network, shape=(3, 32, 32), width=1.0):
    setting = dataclasses.replace(SETTINGS["full"], width=width)
    return models.build(
        architecture(network, setting, shape), input_shape=shape, num_outputs=10,
        generator=seeded(),
    )  # fmt: skip


def test_it_is_a_source_with_its_three_figures():
    assert reproductions.source("true-minimum") is study
    assert [figure.name for figure in study.FIGURES] == ["solutions", "landscape", "descent"]
    assert {claim.figure for claim in study.EXPECTED} == {"solutions", "landscape", "descent"}
    assert len({claim.key for claim in study.EXPECTED}) == len(study.EXPECTED) == 10


def test_the_dense_network_is_the_sources():
    layers = [m for m in built("dnn").modules() if isinstance(m, nn.Linear)]
    assert [m.out_features for m in layers] == [128, 64, 32, 16, 10]
    sizes = [3072, 128, 64, 32, 16, 10]
    counted = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    assert parameters(built("dnn")) == counted


def test_the_convolutional_network_is_the_sources():
    model = built("cnn")
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in layers] == [128, 64, 32, 16, 10]
    assert all(m.kernel_size == (3, 3) for m in layers)
    assert not any(isinstance(m, nn.Linear) for m in model.modules())
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert built("cnn", (1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_residual_network_is_the_sources():
    """Torchvision's ResNet-50 with 10 classes has 23,528,522 parameters."""
    assert parameters(built("resnet50")) == 23_528_522
    model = built("resnet50", width=0.05)
    assert [len(stage) for stage in model.stages] == [3, 4, 6, 3]
    assert built("resnet50", (1, 8, 8), width=0.05).eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    "wrong", [{"data": "imagenet"}, {"scale": "huge"}, {"seed": -1}, {"threads": 0}]
)
def test_wrong_configurations_are_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        Config(**wrong)


def test_pixels_are_averaged_in_blocks_and_only_where_it_says(monkeypatch):
    monkeypatch.setitem(configuration.SETTINGS, "quick", TINY)
    place = bench(Config(data="digits"))
    assert place.splits.train[0].shape == (30, 1, 8, 8)
    assert place.chance == pytest.approx(math.log(10), rel=1e-6)
    assert "averaged" not in place.describe()


def test_the_watch_ends_a_run_by_the_rule_that_classifies_it():
    watch = _Watch(patience=3, zero=0.01, change=0.02)
    for step, loss in enumerate([2.0, 0.5, 0.02, 0.009, 0.008]):
        watch.record(step, {"train_loss": loss})
        assert not watch.done
    watch.record(5, {"train_loss": 0.007})
    assert watch.done
    watch.record(6, {"train_loss": 0.5})
    assert not watch.done


def runs(**epochs):
    """Solutions with given epochs to LM and GM; None is never, "dead" a trivial local minimum."""
    names, made = [], []
    for key, values in epochs.items():
        for local, whole in values:
            dead = local == "dead"
            names.append(NETWORKS[key])
            made.append(
                Solution(
                    label=key, kind="LM", local_epoch=3.0 if dead else (local or math.nan),
                    global_epoch=whole or math.nan, true_epoch=math.nan, local_loss=1.0,
                    least_loss=0.1, final_loss=0.1, final_validation_loss=1.0, epochs=50.0,
                    plateau=0.01, zero=0.01, patience=3, trivial=dead,
                )
            )  # fmt: skip
    return SolutionTable(label="x", names=tuple(names), runs=tuple(made), chance=2.3)


ACCURACY = {"dnn": [0.3], "cnn": [0.4], "resnet50": [0.5]}


def verdicts(table, accuracy=ACCURACY):
    findings, found = judge_solutions(table, accuracy, 1000)
    assert findings
    return {v.claim: v.verdict for v in found}


def test_the_sources_own_numbers_would_satisfy_its_claims():
    table = runs(dnn=[(20, 40)], cnn=[(12, 20)], resnet50=[(10, 18)])
    assert set(verdicts(table).values()) == {"holds"}


def test_the_opposite_satisfies_none():
    table = runs(dnn=[(5, 10)], cnn=[(12, 20)], resnet50=[(20, 30)])
    found = verdicts(table, {"dnn": [0.5], "cnn": [0.4], "resnet50": [0.3]})
    assert set(found.values()) == {"does not hold"}


def test_a_little_longer_is_not_twice_and_a_draw_is_no_order():
    table = runs(dnn=[(16, 40)], cnn=[(12, 20)], resnet50=[(10, 18)])
    found = verdicts(table, {"dnn": [0.3], "cnn": [0.4], "resnet50": [0.41]})
    assert found["lm-resnet"] == "holds in part"
    assert found["performance"] == "holds in part"


def test_a_network_that_never_gets_there_is_longer_but_not_twice():
    table = runs(dnn=[(20, None), ("dead", None)], cnn=[(12, 20)] * 2, resnet50=[(10, 18)] * 2)
    assert epochs_to(table, "DNN", "LM") == (20.0, 1, 2)
    found = verdicts(table)
    assert found["gm"] == "holds in part"
    assert found["lm-cnn"] == "holds"
    never = runs(dnn=[(20, 30)], cnn=[(12, 20)], resnet50=[(None, None)])
    assert verdicts(never)["resnet-cnn"] == "does not hold"
    assert verdicts(never)["lm-resnet"] == "does not hold"


def shape(**values) -> Ensemble:
    numbers = dict.fromkeys(
        ("curvature_low", "curvature_high", "roughness", "nonconvex", "radius", "steepness",
         "asymmetry", "anisotropy"), 1.0,
    )  # fmt: skip
    entry = Smoothness(label="x", field="loss", epsilon=0.1, **{**numbers, **values})
    axis = np.array([-1.0, 0.0, 1.0])
    return Ensemble(
        label="x", field="loss", a=axis, b=axis, values=np.zeros((1, 3, 3)),
        levels=np.array([0.5]), quantiles=np.zeros((1, 3, 3)), smoothness=(entry,),
    )  # fmt: skip


def proof(loss=0.0, gradient=0.0) -> MinimumProof:
    return MinimumProof(
        label="x", targets="soft", likelihood="categorical", examples=1, dimension=1, loss=loss,
        floor=1.0, original_loss=1.0, gradient_norm=gradient, gradient_tolerance=1e-6,
        original_gradient_norm=1.0, eigenvalue_min=0.0, eigenvalue_min_error=0.0,
        eigenvalue_max=1.0, eigenvalue_max_error=0.0, curvature_gap=0.0, checks=(),
        num_products=1, status="converged",
    )  # fmt: skip


def test_landscapes_are_judged_by_their_measures():
    sharp = shape(roughness=9, steepness=9, asymmetry=0.9, radius=0.1)
    smooth = shape(roughness=0.1, steepness=0.1, asymmetry=0.1, radius=9)
    middle = shape(asymmetry=0.5)
    order = {"dnn": sharp, "cnn": middle, "resnet50": smooth}
    shapes = {n: {"filter": s, "global": s} for n, s in order.items()}
    proofs = {n: {"soft": proof(), "hard": proof(0.5, 1.0)} for n in NETWORKS}
    _, found = judge_landscapes(proofs, shapes)
    said = {v.claim: v for v in found}
    assert said["optimal"].verdict == "holds in part"
    assert {said[k].verdict for k in ("smooth", "sharp", "wide")} == {"holds"}
    turned = dict(zip(NETWORKS, [smooth, middle, sharp], strict=True))
    _, found = judge_landscapes(proofs, {n: {"filter": s, "global": s} for n, s in turned.items()})
    assert {v.verdict for v in found if v.claim != "optimal"} == {"does not hold"}


def descent(label, loss, distance, optimizer="adam") -> Descent:
    return Descent(
        label=label, optimizer=optimizer, radius=1.0, epoch=np.array([0.0, 1.0]),
        loss=np.array([1.0, loss]), test_loss=np.ones(2), distance=np.array([1.0, distance]),
        function=np.ones(2), gradient_norm=0.0,
    )  # fmt: skip


def test_the_open_question_is_answered_by_runs_from_initial_weights():
    def said(*losses):
        made = [descent(f"start {k}", loss, 0.7) for k, loss in enumerate(losses)]
        made += [descent("θ* + 0.01 δ", 1e-5, 0.005), descent("θ* + 1 δ", 1.0, 1.0, "sgd")]
        found = judge_descents([Descents(label="DNN", runs=tuple(made), zero=0.01)])[1]
        return found[0]

    assert said(0.001, 0.002).verdict == "does not hold"
    assert said(0.001, 0.2).verdict == "holds in part"
    assert said(0.1, 0.2).verdict == "holds"
    assert "1 of 2 runs (θ* + 0.01 δ 1.0e-05 at 0.005" in said(0.1).because
    assert "nearer to θ* than 0.7" in said(0.1).because


def _tiny_minimum():
    from kobai.landscape import true_minimum
    from kobai.problem import Problem

    x = torch.randn(24, 6, generator=seeded(1), dtype=torch.float64)
    y = torch.randint(0, 3, (24,), generator=seeded(2))
    model = models.build(
        MLPConfig(widths=(8,)), input_shape=(6,), num_outputs=3, generator=seeded(),
        dtype=torch.float64,
    )  # fmt: skip
    return true_minimum(Problem(model.eval(), "categorical", train=(x, y)), curvature=False)


def test_descent_from_the_minimum_stays_there():
    found = _tiny_minimum()
    run, path = descend(
        found, DescentStart("θ*", found.theta, "sgd", rate=0.1), epochs=3, batch_size=8,
        generator=seeded(), stop=lambda: False,
    )  # fmt: skip
    assert run.loss.max() < 1e-25
    assert run.distance.max() < 1e-12
    assert run.function.max() < 1e-12
    assert len(path) == len(run.epoch) == 4


def test_descent_from_near_by_comes_down_to_the_floor():
    found = _tiny_minimum()
    shift = torch.randn(len(found.theta), generator=seeded(5), dtype=torch.float64)
    start = found.theta + 0.05 * shift
    run, _ = descend(
        found, DescentStart("near", start, rate=0.02), epochs=40, batch_size=8, generator=seeded(),
        stop=lambda: False,
    )  # fmt: skip
    assert run.radius == pytest.approx(float((start - found.theta).norm() / found.theta.norm()))
    assert run.loss[-1] < 0.02 * run.loss[0]
    assert run.status == "finished"


def test_a_run_that_is_stopped_goes_on_and_is_not_made_twice(monkeypatch, tmp_path):
    monkeypatch.setitem(configuration.SETTINGS, "quick", TINY)
    place = bench(Config(data="digits"))
    lines: list[str] = []
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        solve(place, tmp_path, "dnn", 0, lines.append, lambda: next(asked))
    problem, history = solve(place, tmp_path, "dnn", 0, lines.append, lambda: False)
    assert history.status == "finished"
    assert not problem.model.training
    again, kept = solve(place, tmp_path, "dnn", 0, lines.append, lambda: True)
    assert np.array_equal(kept.train_loss, history.train_loss)
    assert torch.equal(again.space.theta(), problem.space.theta())
    assert len(lines) == 1


def test_a_folder_belongs_to_one_data_set_scale_and_seed(tmp_path):
    study._claim(tmp_path, Config(data="digits"))
    study._claim(tmp_path, Config(data="digits"))
    for other in ({"data": "mnist"}, {"data": "digits", "seed": 1}):
        with pytest.raises(ValueError, match="choose another folder"):
            study._claim(tmp_path, Config(**other))


@pytest.mark.slow
def test_the_whole_study_in_small(monkeypatch, tmp_path):
    monkeypatch.setitem(configuration.SETTINGS, "quick", TINY)
    lines: list[str] = []
    summary = study.run(Config(data="digits"), tmp_path, progress=lines.append)
    assert {v.claim for v in summary.verdicts} == {c.key for c in study.EXPECTED}
    assert all(v.verdict != "not run" for v in summary.verdicts)
    names = result_names(tmp_path)
    drawn = [name for name in names if plots.picture(load(tmp_path, name)) is not None]
    assert len(drawn) >= 9
    kept: list[str] = []
    again = study.run(Config(data="digits"), tmp_path, progress=kept.append)
    assert all("kept" in line for line in kept)
    assert again.verdicts == summary.verdicts
    with pytest.raises(ValueError, match="choose another folder"):
        study.run(Config(data="digits", seed=1), tmp_path)
