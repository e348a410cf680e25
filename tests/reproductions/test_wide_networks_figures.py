"""Every figure end to end at a tiny size, its numbers consistent with theory; what is kept."""

import dataclasses

import numpy as np
import pytest

from kobai import plots, reproductions
from kobai.reproductions import wide_networks
from kobai.reproductions.wide_networks import (
    eigenvalues,
    input_metric,
    invariance,
    natural_gradients,
    rate_depth,
    rate_width,
    self_paced,
)
from kobai.results import RateMap, load, load_all, result_names
from kobai.studies import Interrupted


def go():
    return False


def quiet(line):
    del line


TINY_WIDTH = rate_width.RateWidthSetting(
    widths=(48, 96),
    rates=tuple(np.geomspace(3e-3, 0.3, 9).tolist()),
    seeds=2,
    steps=20,
    outputs=4,
    hidden_widths=(24, 48),
)
TINY_DEPTH = rate_depth.RateDepthSetting(
    depths=(4, 8, 16),
    rates=tuple(np.geomspace(3e-3, 0.3, 12).tolist()),
    seeds=2,
    steps=30,
    source="digits",
    side=8,
)
TINY_METRIC = input_metric.InputMetricSetting(
    spectra=eigenvalues.EigenvalueSetting(widths=(64, 128), seeds=2, examples=30, outputs=3),
    widths=(64, 128),
    seeds=2,
    width=32,
    examples=100,
    epochs=2,
    source="digits",
)


@pytest.fixture
def tiny(monkeypatch):
    """Tiny settings in the place of quick ones; figures that need files are left alone."""
    monkeypatch.setitem(rate_width.SETTINGS, "quick", TINY_WIDTH)
    monkeypatch.setitem(rate_depth.SETTINGS, "quick", TINY_DEPTH)
    monkeypatch.setitem(input_metric.SETTINGS, "quick", TINY_METRIC)


def test_figure_1_without_normalisation_follows_the_line():
    result, ratio = rate_width.learning_rate_map(
        dataclasses.replace(TINY_WIDTH, panels=("none", "mean")), seed=0, report=quiet, stop=go
    )
    # The mean of the top C: within 10 % at M = 600, and deviations go as 1/√M.
    assert np.abs(ratio[0, 1] - 1).max() < 0.1 * np.sqrt(600 / 96)
    assert np.abs(ratio[0, 0] - 1).max() < 0.1 * np.sqrt(600 / 48)
    # η_c = 2/λ_max: rates a grid step below it lower the loss at every step, far above none does.
    step = result.rates[1] / result.rates[0]
    for j in range(2):
        safe = result.rates < result.measured[0, j] / step**1.5
        wild = result.rates > result.measured[0, j] * 4
        assert (result.rise[0, j, safe] < 1.001).all()
        assert (result.rise[0, j, wild] > 1.001).all()
    assert result.theory[0, 1] / result.theory[0, 0] == pytest.approx(0.5, abs=0.05)
    # Bounds on the normalised one: bulk mean below, root of the sum of squares above.
    assert (result.measured[1] < result.upper[1]).all()
    assert (result.measured[1] > result.lower[1]).all()
    assert result.measured[1, 1] > 2 * result.measured[0, 1]
    assert len(plots.rate_map(result).axes) == 3


def test_hidden_batch_normalisation_leaves_the_outliers():
    found = rate_width.hidden_batch_norm(TINY_WIDTH, seed=0)
    for top, bound in found.values():
        assert top >= 0.9 * bound  # 10 %, three seeds
    assert found[48][0] > 1.5 * found[24][0]


def test_the_largest_rate_of_a_map_lies_between_grid_points():
    rates = np.array([0.1, 0.2, 0.4])
    rise = np.array([0.9, 0.95, 1.2])[None, None, :, None]
    nothing = np.full((1, 1), np.nan)

    def a_map(rise):
        return RateMap(
            title="", size_name="", loss_name="", panels=("a",), rates=rates, sizes=np.ones(1),
            loss=np.ones((1, 1, 3, 1)), rise=rise, theory=nothing, lower=nothing, upper=nothing,
            measured=nothing, steps=1,
        )  # fmt: skip

    assert a_map(rise).largest_rate()[0, 0, 0] == pytest.approx(np.sqrt(0.08))
    assert np.isnan(a_map(np.minimum(rise, 0.9)).largest_rate()).all()
    assert np.isnan(a_map(np.full_like(rise, np.inf)).largest_rate()).all()
    assert np.isnan(a_map(rise * np.nan).largest_rate()).all()


def test_figure_2_follows_the_line_over_the_depth():
    result, findings, verdicts = rate_depth.depth_map(TINY_DEPTH, seed=0, report=quiet, stop=go)
    edges = result.largest_rate()[0]
    over = edges / result.theory[0][:, None]
    step = result.rates[1] / result.rates[0]
    # 1.0 to 1.3 of 2/(M λ_max), here up to a grid step.
    assert over.min() > 1 / step
    assert over.max() < 1.3 * step
    by_claim = {v.claim: v for v in verdicts}
    assert by_claim["isometry-concentration"].verdict == "holds"
    top = next(f for f in findings if "over theory's" in f.what)
    assert top.measured == pytest.approx(1.0, abs=1e-5)  # 1e-6 in float64


def test_figure_4_statistics_are_theorys():
    setting = TINY_METRIC.spectra
    scan, panels, spread = eigenvalues.eigenvalue_scan(setting, seed=0, report=quiet, stop=go)
    ratio = (scan.mean / scan.predicted)[:2, :3, -1]
    # Mean 5–15 %, second moment and λ_max 20–30 %, here 2 seeds.
    assert np.abs(ratio[:, 0] - 1).max() < 0.15
    assert np.abs(ratio[:, 1:] - 1).max() < 0.35
    gap = scan.mean[:, 3, -1]
    plain = [i for i, name in enumerate(scan.groups) if "subtracted" not in name]
    centred = [i for i, name in enumerate(scan.groups) if "subtracted" in name]
    assert gap[plain].min() > 1.2 * gap[centred].max()
    assert spread["softmax"].mean() > 2 * spread["regression"].mean()
    assert len(panels.eigenvalues["regression"]) == 90
    assert len(panels.eigenvalues["softmax, mean subtracted"]) == 2 * 29
    assert min(panels.eigenvalues["softmax, mean subtracted"]) > 1e-9
    for draw, result in ((plots.width_scan, scan), (plots.spectrum_panels, panels)):
        assert len(draw(result).axes) == 4


def test_pushes_along_the_top_directions_move_outputs_as_the_metric_says():
    response = input_metric.push(TINY_METRIC, seed=0, stop=go)
    small = response.change[:, :, 0] / response.predicted[:, :, 0]
    assert np.abs(small - 1).max() < 0.02  # relu: exact but for units that switch
    assert (response.change[:, 0] > 1.3 * response.change[:, 1])[:, :3].all()
    assert len(plots.input_response(response).axes) == 4


def test_every_structure_is_invariant_where_it_is_closed():
    found = invariance.invariance(seed=0, draws=1)
    change = {
        (m, a): found.change[i, j]
        for i, m in enumerate(found.methods)
        for j, a in enumerate(found.maps)
    }
    closed = {
        "exact": set(found.maps),
        "layer-wise": set(found.maps) - {"all parameters"},
        "tri-diagonal": set(found.maps) - {"all parameters"},
        "unit-wise": {"scales of parameters", "inside each unit"},
        "entry-wise": {"scales of parameters"},
        "K-FAC": {"inputs and outputs of layers"},
        "gradient descent": set(),
    }
    for (method, kind), value in change.items():
        if kind in closed[method]:
            assert value < 1e-7, (method, kind)
        elif method == "K-FAC":
            assert np.isnan(value)
        else:
            assert value > 0.01, (method, kind)
    assert len(plots.invariance_table(found).axes) == 1


@pytest.mark.slow
def test_figure_3_follows_function_space():
    setting = natural_gradients.NaturalGradientSetting(
        width=128, examples=16, test=50, side=14, seeds=1, steps=4, factors=(1.0, 0.25)
    )
    runs = natural_gradients.train_all(setting, seed=0, report=quiet, stop=go)
    index = {name: i for i, name in enumerate(runs.methods)}
    for name in ("exact", "layer-wise", "tri-diagonal"):
        i = index[name]
        assert runs.alpha[i, 0] == pytest.approx(runs.alpha_theory[i], rel=1e-4)
        assert runs.spread[i, 0] < 1e-6
        # One step leaves about 0.04 at M = 128; pictures are harder: 0.2.
        assert runs.loss[0, i, 1, 0] < 0.04 * runs.loss[0, i, 0, 0]
        assert runs.loss[1, i, 4, 0] == pytest.approx(runs.predicted[1, i, 4, 0], rel=0.1)
        # (1 − 1/4)⁸ of the loss after four steps, from the isotropy alone.
        assert runs.predicted[1, i, 4, 0] == pytest.approx(
            0.75**8 * runs.loss[1, i, 0, 0], rel=1e-3
        )
    assert runs.spread[index["entry-wise"], 0] > 0.5
    assert len(plots.function_space(runs).axes) == 3


@pytest.mark.slow
def test_figure_5_trains_and_regresses_on_the_same_subsets():
    setting = dataclasses.replace(
        self_paced.SETTINGS["quick"], sizes=(50, 100), seeds=1, steps=60, test=200
    )
    result = self_paced.learning_curves(setting, seed=0, report=quiet, stop=go)
    assert np.isfinite(result.error).all()
    assert (result.error < 0.6).all()
    assert result.selected[0, 0, 0] > 0.9
    assert result.selected[0, -1, 0] < result.selected[0, 0, 0]


def test_a_run_stops_between_figures_and_goes_on_without_repeating(tiny, tmp_path, monkeypatch):
    config = wide_networks.Config(figure="1,2")
    with pytest.raises(Interrupted):
        wide_networks.run(config, tmp_path, stop=lambda: (tmp_path / "figure_1.json").exists())
    assert "figure_1" in result_names(tmp_path)
    assert "figure_2" not in result_names(tmp_path)
    before = load(tmp_path, "figure_1_map")

    def never(*args, **kwargs):
        raise AssertionError("figure 1 was made again")

    monkeypatch.setattr(rate_width, "learning_rate_map", never)
    lines = []
    summary = wide_networks.run(config, tmp_path, progress=lines.append)
    assert any("kept" in line for line in lines)
    assert np.array_equal(load(tmp_path, "figure_1_map").loss, before.loss)
    verdicts = {v.claim: v.verdict for v in summary.verdicts}
    assert set(verdicts) == {claim.key for claim in wide_networks.EXPECTED}
    assert verdicts["same-speed"] == "not run"
    assert verdicts["weight-normalization"] == "out of scope"
    assert verdicts["online-rate"] in ("holds", "does not hold")
    with pytest.raises(ValueError, match="another folder"):
        wide_networks.run(dataclasses.replace(config, seed=5), tmp_path)


def test_a_damaged_record_is_made_again(tiny, tmp_path):
    config = wide_networks.Config(figure="2")
    wide_networks.run(config, tmp_path)
    (tmp_path / "figure_2.json").write_text("{")
    lines = []
    wide_networks.run(config, tmp_path, progress=lines.append)
    assert not any("kept" in line for line in lines)
    assert len(load_all(tmp_path)) == 3


def test_claims_have_figures_and_every_figure_judges_its_claims(tiny, tmp_path):
    names = {maker.name for maker in wide_networks.FIGURES}
    assert names == {"1", "2", "3", "4", "5"}
    assert {c.figure for c in wide_networks.EXPECTED if not c.out_of_scope} == names
    summary = wide_networks.run(wide_networks.Config(figure="1,2,4"), tmp_path)
    judged = {v.claim for v in summary.verdicts if v.verdict not in ("not run", "out of scope")}
    assert judged == {c.key for c in wide_networks.EXPECTED if c.figure in ("1", "2", "4")}


@pytest.mark.parametrize("text", ["", "6", "1,1", "1,x"])
def test_unknown_figures_are_refused(text):
    with pytest.raises(ValueError, match="figure is"):
        reproductions.chosen_figures(text, wide_networks.FIGURES)


@pytest.mark.parametrize("change", [{"seed": -1}, {"threads": 0}])
def test_wrong_configurations_are_refused(change):
    with pytest.raises(ValueError):
        wide_networks.Config(**change)


def test_unknown_sources_are_refused():
    with pytest.raises(ValueError, match="wide-networks"):
        reproductions.source("papers")
    assert reproductions.source("wide-networks") is wide_networks
