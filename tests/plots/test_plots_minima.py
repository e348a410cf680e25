"""Pictures of minima show what the results say; oracles are the numbers put into them."""

import dataclasses
import math

import numpy as np
import pytest

from example_results import a_plane
from kobai import plots
from kobai.plots import (
    connection,
    critical_map,
    descents,
    ensemble_bands,
    minimum_panels,
    moving_frames,
    picture,
    proof_panel,
    shape_table,
    solution_epochs,
    to_png,
)
from kobai.results import (
    Check,
    Connection,
    CriticalPoint,
    CriticalPoints,
    Descent,
    Descents,
    Ensemble,
    MinimumProof,
    MovingFrame,
    PlanePanels,
    ShapeTable,
    Smoothness,
    Solution,
    SolutionTable,
)


def texts(figure) -> str:
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [text.get_text() for text in axes.texts]
        found += [axes.get_title(loc=loc) for loc in ("left", "center", "right")]
        found += [axes.get_xlabel(), axes.get_ylabel()]
        legend = axes.get_legend()
        found += [text.get_text() for text in legend.get_texts()] if legend else []
    for legend in figure.legends:
        found += [text.get_text() for text in legend.get_texts()]
    return "\n".join(found)


def is_png(figure) -> bool:
    return to_png(figure, dpi=50).startswith(b"\x89PNG")


def a_proof(**changes) -> MinimumProof:
    checks = (
        Check(name="gradient", passed=True, value=1e-9, tolerance=1e-5, detail=""),
        Check(name="no negative eigenvalue", passed=False, value=0.3, tolerance=1e-3, detail=""),
    )
    fields = {
        "label": "DNN, soft", "targets": "soft", "likelihood": "categorical", "examples": 9,
        "dimension": 50, "loss": 1e-15, "floor": 0.63, "original_loss": 0.7,
        "gradient_norm": 1e-9, "gradient_tolerance": 1e-5, "original_gradient_norm": 2.5,
        "eigenvalue_min": -0.3, "eigenvalue_min_error": 0.0, "eigenvalue_max": 60.0,
        "eigenvalue_max_error": 0.0, "curvature_gap": 1e-7, "checks": checks,
        "num_products": 12, "status": "converged",
    }  # fmt: skip
    return MinimumProof(**{**fields, **changes})


def test_the_proof_panel_measures_every_condition_in_its_tolerance():
    figure = proof_panel(a_proof(), a_proof(label="hard"))
    bars = figure.axes[0].patches
    # The first condition is met by four powers of ten, the second missed by log10(300).
    ends = sorted(bar.get_x() + bar.get_width() for bar in bars)
    assert ends == pytest.approx([-4.0, math.log10(300)])
    assert "gradient: 1.00×10⁻⁹" in texts(figure)
    assert "DNN, soft" in texts(figure)
    assert "floor 0.630" in texts(figure)
    assert is_png(figure)
    with pytest.raises(ValueError, match="one to four"):
        proof_panel()


def a_solution(local, whole, epochs=40.0, trivial=False) -> Solution:
    return Solution(
        label="run", kind="LM", local_epoch=local, global_epoch=whole, true_epoch=math.nan,
        local_loss=1.0, least_loss=0.1, final_loss=0.1, final_validation_loss=1.0, epochs=epochs,
        plateau=0.01, zero=0.01, patience=3, trivial=trivial,
    )  # fmt: skip


def test_epochs_are_dots_and_what_was_not_reached_is_hollow_at_the_budget():
    table = SolutionTable(
        label="x", names=("DNN", "CNN"), chance=2.3,
        runs=(a_solution(20.0, math.nan, trivial=True), a_solution(12.0, 30.0)),
    )  # fmt: skip
    figure = solution_epochs(table)
    marks = [(line.get_ydata()[0], line.get_markerfacecolor()) for line in figure.axes[0].lines]
    solid = sorted(float(y) for y, color in marks if color != plots.style.PAPER)
    hollow = sorted(float(y) for y, color in marks if color == plots.style.PAPER)
    assert solid == [12.0, 20.0, 20.0, 30.0]  # the cross of the trivial one lies on its dot
    assert hollow == [40.0, 40.0, 40.0]
    assert "GM 30" in texts(figure)
    assert "GM –" in texts(figure)
    assert is_png(figure)


def a_descent(label="same start", optimizer="adam", **changes) -> Descent:
    epoch = np.arange(5.0)
    fields = {
        "label": label, "optimizer": optimizer, "radius": 0.5, "epoch": epoch,
        "loss": np.exp(-epoch), "test_loss": np.exp(-epoch / 2), "distance": 0.5 + 0 * epoch,
        "function": np.exp(-epoch / 2), "gradient_norm": 1e-3,
    }  # fmt: skip
    return Descent(**{**fields, **changes})


def test_descents_draw_every_run_in_three_panels():
    runs = (
        a_descent(), a_descent("θ* + 0.1 δ", loss=np.zeros(5)),
        a_descent("same start, gradient descent", "sgd"),
    )  # fmt: skip
    figure = descents(Descents(label="DNN", runs=runs, zero=0.01))
    assert len(figure.axes) == 3
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 5]
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx(
        [math.exp(-4), 1e-16, math.exp(-4)]
    )
    # The same start has one colour, whatever the optimizer.
    assert lines[0].get_color() == lines[2].get_color() != lines[1].get_color()
    assert lines[2].get_linestyle() != lines[0].get_linestyle()
    assert "same start, gradient descent" in texts(figure)
    assert is_png(figure)


def test_panels_show_a_floor_of_zero_at_a_stated_value():
    plane = a_plane()
    zero = dataclasses.replace(plane, fields={"loss": plane.fields["loss"] * 0}, trajectories=())
    panels = PlanePanels(
        label="around θ*", planes=(plane, zero), titles=("DNN", "CNN"), low=1e-3, high=3.0
    )
    figure = minimum_panels(panels)
    assert "losses below 0.00100 drawn as 0.00100" in texts(figure)
    assert "DNN" in texts(figure)
    assert is_png(figure)


def an_ensemble(label="DNN", scale=1.0) -> Ensemble:
    a = np.linspace(-1, 1, 5)
    grid = a[:, None] ** 2 + a[None] ** 2
    values = np.stack([scale * grid, 2 * scale * grid])
    entries = tuple(
        Smoothness(
            label=label, field="loss", epsilon=0.1, curvature_low=0.0, curvature_high=1.0,
            roughness=0.5 * k, nonconvex=0.1, radius=2.0 * k, steepness=0.2, asymmetry=0.3,
            anisotropy=0.4, unit=2.0, cut_off=k == 2,
        )
        for k in (1, 2)
    )  # fmt: skip
    return Ensemble(
        label=label, field="loss", a=a, b=a, values=values, levels=np.array([0.5]),
        quantiles=np.quantile(values, [0.5], axis=0), smoothness=entries,
    )  # fmt: skip


def test_the_shape_table_shows_each_plane_and_the_median():
    figure = shape_table(ShapeTable(label="filter", rows=(an_ensemble(), an_ensemble("CNN"))))
    assert len(figure.axes) == 6
    radius = figure.axes[0]
    dots = [line for line in radius.lines if line.get_marker() == "o"]
    assert sorted(dots[0].get_ydata()) == [1.0, 2.0]  # in units of the directions' norm
    assert "1.50" in texts(figure)
    assert "1 cut off" in texts(figure)
    assert is_png(figure)


def test_bands_are_quantiles_over_rays():
    figure = ensemble_bands(an_ensemble(scale=3.0))
    line = figure.axes[0].lines[0]
    # Four rays: 3a², 3a², 6a², 6a².
    assert line.get_ydata() == pytest.approx(4.5 * np.linspace(-1, 1, 5) ** 2)
    assert is_png(figure)


def test_a_connection_shows_both_ways_and_their_barriers():
    t = np.linspace(0, 1, 5)
    result = Connection(
        label="way", t=t, straight=np.array([0, 1, 2, 1, 0.0]), curve=0.1 * t * (1 - t),
        straight_barrier=2.0, curve_barrier=0.025, distance=1.0, length=1.2,
        losses=np.ones(3),
    )  # fmt: skip
    figure = connection(result)
    assert "straight line: barrier 2.00" in texts(figure)
    assert "trained curve: barrier 0.0250" in texts(figure)
    assert is_png(figure)


def test_critical_points_are_numbered_and_hollow_where_they_are_artefacts():
    nothing = np.full(2, np.nan)
    points = tuple(
        CriticalPoint(
            coordinates=np.array([0.5, 0.2]) * k, loss=0.1 * k, plane_kind=kind,
            plane_eigenvalues=np.array([1.0, 2.0]), plane_gradient_norm=0.0, gradient_norm=norm,
            genuine=norm < 0.1, kind="minimum", eigenvalue_min=0.0, eigenvalue_max=1.0,
            status="refined", polished_coordinates=nothing,
        )
        for k, (kind, norm) in enumerate([("minimum", 0.0), ("saddle", 1.0)], start=1)
    )  # fmt: skip
    found = CriticalPoints(label="plane", points=points, scale=1.0, tolerance=0.1, plane=a_plane())
    figure = critical_map(found)
    assert "1  minimum of the slice, loss 0.100" in texts(figure)
    assert "not stationary in the space" in texts(figure)
    marks = [line for line in figure.axes[0].lines if line.get_markersize() == 10]
    assert [line.get_markerfacecolor() for line in marks] == [plots.style.INK, plots.style.PAPER]
    assert is_png(figure)
    with pytest.raises(ValueError, match="without their plane"):
        critical_map(dataclasses.replace(found, plane=None))


def test_moving_frames_are_side_by_side():
    frames = MovingFrame(label="run", steps=(0, 4), frames=(a_plane(), a_plane()))
    figure = moving_frames(frames)
    assert "point 4 of the path" in texts(figure)
    assert is_png(figure)


def test_every_result_here_has_its_picture():
    assert picture(a_proof()) is not None
    assert picture(an_ensemble()) is not None
    assert picture(Descents(label="x", runs=(a_descent(),), zero=0.01)) is not None
