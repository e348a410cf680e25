"""Figures show what they say: orientation, gaps, clipping, hidden parts; and they save whole."""

import dataclasses
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from PIL import Image

from example_results import a_history, a_plane, a_spectrum, histories, with_holes
from kobai import plots
from kobai.plots import curves, eigenvalues, landscape_contour, landscape_surface
from kobai.plots.landscape.contour import true_to_scale
from kobai.plots.landscape.occlusion import Relief, runs_of
from kobai.results import Check


def words(figure) -> str:
    """Every text of a figure."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_text())


def pixels(figure, tmp_path) -> np.ndarray:
    path, _ = plots.save(figure, tmp_path, "figure")
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def test_curves_have_loss_and_accuracy_against_epochs_and_seconds():
    figure = curves(histories())
    assert len(figure.axes) == 4
    assert figure.axes[0].get_yscale() == "log"
    text = words(figure)
    for word in ("kfac (2 seeds)", "epoch", "training time (s)", "accuracy", "loss", "test"):
        assert word in text


def test_curves_without_accuracy_or_test_data_have_one_row():
    nothing = np.full(9, np.nan)
    bare = a_history(
        train_accuracy=nothing, test_accuracy=nothing, test_loss=nothing, label="x $1 _y_"
    )
    figure = curves([bare])
    assert len(figure.axes) == 2
    assert "test" not in words(figure)


def test_curves_mark_diverged_runs_and_keep_the_scale_of_the_others(tmp_path):
    wild = np.concatenate([np.geomspace(2, 1e12, 6), np.full(3, np.nan)])
    lost = a_history("sgd", 5, status="diverged", train_loss=wild, test_loss=wild)
    figure = curves([*histories(), lost])
    assert "sgd (3 seeds, 1 diverged)" in words(figure)
    assert figure.axes[0].get_ylim()[1] < 10
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [line.get_xdata()[0] for line in crosses] == [5.0]
    plots.save(curves([lost]), tmp_path, "alone")


def test_curves_need_something_to_draw():
    with pytest.raises(ValueError, match="nothing to draw"):
        curves([])
    nothing = np.full(9, np.nan)
    with pytest.raises(ValueError, match="nothing to draw"):
        curves([a_history(train_loss=nothing, test_loss=nothing)])


def test_contours_have_the_first_index_along_x(tmp_path):
    a, b = np.linspace(0, 1, 7), np.linspace(0, 1, 5)
    probe = np.repeat(a[:, None], 5, axis=1) + 0.01 * b
    plane = a_plane(a=a, b=b, fields={"loss": probe}, trajectories=(), points={})
    figure = landscape_contour(plane)
    image = pixels(figure, tmp_path).sum(axis=2)
    box = figure.axes[0].get_position()
    height, width = image.shape
    row = int(height * (1 - (box.y0 + box.y1) / 2))
    left, right = (int(width * (box.x0 + share * box.width)) for share in (0.12, 0.93))
    assert image[row, right] > image[row, left] + 200, "light (high) must be at large a"
    assert "Loss · between the ends" in words(figure)


def test_contours_state_clipping_and_hatch_what_is_not_finite():
    figure = landscape_contour(with_holes(a_plane()))
    text = words(figure)
    assert "1 value above, up to 1.00×10⁷" in text
    assert "3 values are not finite (hatched)" in text
    assert any(patch.get_hatch() for patch in figure.axes[0].patches)
    assert not any(patch.get_hatch() for patch in landscape_contour(a_plane()).axes[0].patches)


def test_path_dots_show_the_true_loss():
    plane = a_plane()
    dots = [
        part
        for part in landscape_contour(plane).axes[0].collections
        if isinstance(part, PathCollection)
    ]
    fills = dots[0].get_facecolor()[:, :3].sum(axis=1)
    assert np.all(np.diff(fills) <= 1e-9), "the loss falls along this path, so dots get darker"
    assert fills[0] > fills[-1] + 0.5


def test_path_points_outside_are_counted_and_distances_drawn():
    plane = a_plane()
    shifted = plane.trajectories[0].coordinates + np.array([1.55, 0.0])
    path = dataclasses.replace(plane.trajectories[0], coordinates=shifted)
    figure = landscape_contour(dataclasses.replace(plane, trajectories=(path,)))
    assert "2 of 6 path points lie outside the picture" in words(figure)
    assert "distance from the plane" in words(figure)
    assert len(figure.axes) == 3
    assert len(landscape_contour(a_plane(trajectories=(), points={})).axes) == 2


def test_pictures_are_true_to_scale_only_when_sensible():
    assert true_to_scale(a_plane()) == pytest.approx(5 / 4)
    assert true_to_scale(a_plane(cosine=0.4)) is None
    assert true_to_scale(a_plane(direction_norms=np.array([1.0, 90.0]))) is None
    assert true_to_scale(a_plane(cosine=float("nan"))) is None
    assert landscape_contour(a_plane()).axes[0].get_aspect() == pytest.approx(5 / 4)


@pytest.mark.parametrize("draw", [landscape_contour, landscape_surface])
def test_unknown_and_empty_fields_are_refused(draw):
    with pytest.raises(ValueError, match="has no field 'los'; it has loss, accuracy"):
        draw(a_plane(), "los")
    with pytest.raises(ValueError, match="no value of this field is finite"):
        draw(a_plane(fields={"loss": np.full((13, 10), np.nan)}))


ODD_PLANES = {
    "plain": a_plane(),
    "holes": with_holes(a_plane()),
    "constant": a_plane(fields={"loss": np.ones((13, 10))}),
    "negative": a_plane(fields={"loss": -np.ones((13, 10)) + np.arange(10) * 1e-3}),
    "text": a_plane(label="$x_1$ %d", points={"a $b$ c": np.zeros(2)}, axis_names=("$", "")),
    "small": a_plane(a=np.arange(2.0), b=np.arange(2.0), fields={"loss": np.eye(2)}),
}


@pytest.mark.parametrize("name", ODD_PLANES)
def test_any_plane_draws_as_contours(name):
    assert plots.to_png(landscape_contour(ODD_PLANES[name]), dpi=50).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["holes", "constant", "text"])
def test_any_plane_draws_as_a_surface(name):
    assert plots.to_png(landscape_surface(ODD_PLANES[name]), dpi=50).startswith(b"\x89PNG")


def test_a_field_that_is_not_loss_draws():
    text = words(landscape_contour(a_plane(), "accuracy"))
    assert "Accuracy · between the ends" in text
    assert "%" in text
    assert plots.to_png(landscape_surface(a_plane(), "accuracy"), dpi=50)


def test_hills_hide_what_is_behind_them():
    a = b = np.linspace(0, 1, 21)
    wall = np.where(np.abs(a[:, None] - 0.5) < 0.06, 1.0, 0.0) + 0 * b
    relief = Relief(a=a, b=b, height=wall, box=(1.0, 1.0, 0.5), bottom=0.0, top=1.0)
    points = np.array([[0.3, 0.5, 0.0], [0.8, 0.5, 0.0], [0.3, 0.5, 1.0]])
    assert relief.visible(points, elevation=30.0, azimuth=0.0).tolist() == [False, True, True]
    assert relief.visible(points, elevation=30.0, azimuth=180.0).tolist() == [True, False, True]
    assert relief.visible(points, elevation=89.0, azimuth=0.0).all()


def test_stretches_of_a_mask():
    mask = np.array([True, True, False, True, False, True, True, True])
    assert runs_of(mask) == [slice(0, 2), slice(5, 8)]
    assert runs_of(np.zeros(3, dtype=bool)) == []


def test_eigenvalues_have_a_row_a_run_and_a_panel_a_matrix():
    figure = eigenvalues(
        [a_spectrum("sgd"), a_spectrum("kfac"), a_spectrum("sgd", matrix="ggn", status="stalled")]
    )
    text = words(figure)
    assert "Hessian (50 parameters)" in text
    assert "Gauss–Newton" in text
    assert "4.00  (stalled)" in text
    assert len(figure.axes) == 2
    assert figure.axes[-1].get_xlim()[0] < -0.02
    with pytest.raises(ValueError, match="nothing to draw"):
        eigenvalues([])


@pytest.mark.parametrize(
    "values",
    [[0.0], [-3.0, -1.0], [1e-12, 1e9], [1.0, np.inf]],
    ids=["0", "negative", "wide", "inf"],
)
def test_any_spectrum_draws(values, tmp_path):
    spectrum = a_spectrum(
        eigenvalues=np.array(values), residuals=np.full(len(values), np.nan), trace=np.nan
    )
    plots.save(eigenvalues([spectrum]), tmp_path, "x")


def test_saved_files_are_whole_and_the_same_each_time(tmp_path):
    one = plots.save(eigenvalues([a_spectrum()]), tmp_path / "new", "spectrum")
    two = plots.save(eigenvalues([a_spectrum()]), tmp_path, "again")
    assert [path.name for path in one] == ["spectrum.png", "spectrum.svg"]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    with Image.open(one[0]) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert ET.parse(one[1]).getroot().tag.endswith("svg")
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_long_labels_leave_room_for_the_figure():
    long = "word " * 60
    figures = [
        eigenvalues([a_spectrum(label=long, matrix=long, status=long)]),
        curves([a_history(long, label=long)]),
        landscape_contour(a_plane(label=long, axis_names=(long, long), points={long: np.ones(2)})),
    ]
    for figure in figures:
        assert plots.to_png(figure, dpi=40)  # a warning of the layout would be an error here
        assert "…" in words(figure)


def test_pyplot_stays_out():
    code = "import sys, kobai.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_checks_are_no_part_of_a_picture():
    check = Check(name="secret", passed=False, value=1.0, tolerance=0.0)
    assert "secret" not in words(landscape_contour(a_plane(checks=(check,))))
