"""Each rule speaks above its threshold, with its number, and is silent below."""

import dataclasses

import numpy as np
import pytest

from example_results import a_comparison, a_history, a_plane, a_row, a_spectrum, with_holes
from kobai.report import Contents, notes_on
from kobai.report.tables import comparison_table, decimals, fixed, run_table, spectrum_table
from kobai.results import Aggregate, Check, Trajectory


def contents(**changes) -> Contents:
    nothing = Contents(
        name="x",
        provenance=None,
        comparison=None,
        histories=[],
        spectra=[],
        planes=[],
        checks=[],
        damaged={},
        config="",
        files={},
    )
    return dataclasses.replace(nothing, **changes)


def said(**changes) -> str:
    return "\n".join(
        f"[{note.tone}] {note.text} | {note.because}" for note in notes_on(contents(**changes))
    )


def number(mean, sd=0.0, count=3) -> Aggregate:
    return Aggregate(mean=float(mean), sd=float(sd), count=count)


def rows(accuracies, sd, count=3):
    nan = number(float("nan"), count=0)
    quiet = dict.fromkeys(("steps_to_95", "lambda_max"), nan)
    return a_comparison(
        rows=tuple(
            a_row(name, seeds=count, test_accuracy=number(value, sd, count), **quiet)
            for name, value in accuracies.items()
        )
    )


def test_nothing_to_say_about_nothing():
    assert said() == ""


def test_a_winner_must_win_by_more_than_two_standard_errors():
    clear = said(comparison=rows({"a": 0.97, "b": 0.95, "c": 0.9}, sd=0.002))
    assert "[good] a ends with the best test accuracy: 97.00 % against 95.00 % for b" in clear
    error = 0.002 * np.sqrt(2 / 3)
    assert f"difference 2.00 points = {0.02 / error:.0f} standard errors (over 2)" in clear
    close = said(comparison=rows({"a": 0.951, "b": 0.95}, sd=0.002))
    assert "[plain] a (95.10 %) and b (95.00 %) cannot be told apart" in close
    assert "0.61 standard errors (2 or less)" in close
    single = said(comparison=rows({"a": 0.97, "b": 0.95}, sd=float("nan"), count=1))
    assert "nobody can say" in single
    assert said(comparison=rows({"a": 0.97}, sd=0.1)) == ""


def test_without_accuracy_the_loss_decides():
    nan = number(float("nan"), count=0)
    table = a_comparison(
        rows=tuple(
            a_row(
                name,
                test_accuracy=nan,
                steps_to_95=nan,
                lambda_max=nan,
                test_loss=number(loss, 0.01),
            )
            for name, loss in (("a", 0.5), ("b", 0.2))
        )
    )
    assert "b ends with the best test loss: 0.200 against 0.500 for a" in said(comparison=table)


def test_speed_is_told_in_steps_and_in_seconds():
    histories = [a_history(name) for name in ("sgd", "adam", "kfac")]
    text = said(comparison=a_comparison(), histories=histories)
    assert "kfac needs 33 steps" in text
    assert "sgd 167" in text
    # 10 steps an epoch; seconds per epoch and steps as in the example rows: 2 s for all.
    assert "In training time" in text
    assert "5.0 times as many steps (over 1.2)" in text


def test_runs_that_never_got_there_are_told():
    slow = a_row("sgd", seeds=3, steps_to_95=number(90, count=1))
    text = said(comparison=a_comparison(rows=(a_row("kfac"), slow)))
    assert "2 of 3 with sgd did not, and do not count here." in text


def test_sharpness_speaks_from_a_ratio_of_one_and_a_half():
    text = said(comparison=a_comparison())
    assert "kfac ended where the loss curves least: λ_max = 1.67 against 8.33 for sgd" in text
    same = a_comparison(rows=tuple(a_row(n, lambda_max=number(2)) for n in ("a", "b")))
    assert "curves least" not in said(comparison=same)


def test_lost_runs_are_named():
    text = said(histories=[a_history(), a_history(label="b", status="diverged")])
    assert "[warn] 1 of 2 runs diverged: b." in text
    assert "interrupted" in said(histories=[a_history(status="interrupted")])


def test_overfitting_is_a_rise_of_five_percent():
    rising = np.concatenate([np.linspace(2, 0.5, 5), np.linspace(0.55, 0.7, 4)])
    text = said(histories=[a_history(test_loss=rising)])
    assert "test loss of sgd was lowest at epoch 4 (0.500) and rose to 0.700" in text
    assert "rise of 40 % over the minimum (over 5 %)" in text
    assert "overfits" not in said(histories=[a_history()])


def test_the_edge_of_stability_is_lr_times_lambda_over_two():
    run = a_history(learning_rate=np.full(9, 0.45))
    text = said(histories=[run], spectra=[a_spectrum()])
    assert "at the edge of stability" in text
    assert "90 % of 2 / λ_max = 0.500" in text
    calm = said(histories=[a_history()], spectra=[a_spectrum()])
    assert "well inside the limit" in calm
    other = said(histories=[a_history("adam")], spectra=[a_spectrum("adam")])
    assert "limit" not in other


def test_negative_curvature_must_exceed_its_error():
    assert "1 of 1 end points still have directions of negative curvature" in said(
        spectra=[a_spectrum()]
    )
    unsure = a_spectrum(residuals=np.array([0.03, 0, 0, 0.01]))
    assert "negative curvature" not in said(spectra=[unsure])
    assert "negative curvature" not in said(spectra=[a_spectrum(matrix="ggn")])


def test_unconverged_spectra_are_warned_of():
    text = said(spectra=[a_spectrum(status="breakdown"), a_spectrum("adam")])
    assert "[warn] Do not rely on the eigenvalues of sgd-0 (hessian)" in text
    wide = a_spectrum(residuals=np.array([0, 0, 0, 1.0]))
    assert "residual 25 % of λ_max" in said(spectra=[wide])


def test_the_lowest_node_and_the_barrier_are_read_off_the_grid():
    text = said(planes=[a_plane()])
    assert "no node of the grid is lower than the end of kfac-0" in text
    a, b = np.linspace(0, 1, 21), np.linspace(0, 1, 21)
    wall = 0.1 + np.exp(-((a[:, None] - 0.5) ** 2) / 0.01) + 0 * b
    ends = {"p": np.array([0.0, 0.5]), "q": np.array([1.0, 0.5])}
    plane = a_plane(a=a, b=b, fields={"loss": wall}, points=ends, trajectories=())
    text = said(planes=[plane])
    assert "A barrier lies between p and q: on the straight line the loss rises to 1.10" in text
    bowl = 0.1 + (a[:, None] - 0.5) ** 2 + (b - 0.5) ** 2
    text = said(planes=[dataclasses.replace(plane, fields={"loss": bowl})])
    assert "No barrier" in text
    assert "goes lower than any run did: 0.100 at (0.50, 0.50) against 0.350" in text


def test_shadows_are_called_shadows():
    text = said(planes=[a_plane()])
    assert "kfac-0 runs up to 3.00 off the plane while it spans" in text
    flat = Trajectory(
        label="kfac-0",
        coordinates=a_plane().trajectories[0].coordinates,
        off_plane=np.zeros(6),
        loss=np.ones(6),
    )
    assert "shadows" not in said(planes=[a_plane(trajectories=(flat,))])


def test_gaps_and_checks_are_counted():
    assert "[warn] On “between the ends” 3 of 130 values of loss" in said(
        planes=[with_holes(a_plane())]
    )
    bad = Check(name="slope", passed=False, value=0.2, tolerance=1e-3, detail="differences")
    good = Check(name="centre", passed=True, value=1e-9, tolerance=1e-6)
    assert "[warn] The self-check “slope” of “p” failed: differences." in said(
        checks=[("p", bad), ("p", good)]
    )
    text = said(checks=[("p", good)])
    assert "[good] Every self-check passed." in text
    assert "0.1 % of it" in text


def test_warnings_come_first():
    tones = [
        note.tone
        for note in notes_on(
            contents(
                comparison=a_comparison(),
                histories=[a_history(status="diverged")],
                planes=[with_holes(a_plane())],
                damaged={"x": "broken"},
            )
        )
    ]
    warnings = tones.count("warn")
    assert warnings == 3
    assert set(tones[:warnings]) == {"warn"}


def test_digits_line_up():
    assert decimals([0.0123, 1.5]) == 4
    assert decimals([123.0, 456.0]) == 0
    assert decimals([1e-9, 1.0]) is None
    assert decimals([float("nan")]) == 0
    assert fixed(-1.5, 2) == "−1.50"
    assert fixed(1234.5, 1) == "1,234.5"
    assert fixed(float("nan"), 2) == "–"


def test_the_table_marks_the_best_and_says_what_is_missing():
    lost = a_row("adam", statuses={"finished": 1, "diverged": 1}, test_loss=number(0.9, 0, 1))
    table = comparison_table(a_comparison(rows=(a_row("kfac"), lost)))
    assert table.heads[0] == "test accuracy, %"
    assert table.rows[0][0].best
    assert table.rows[0][0].text == "95.00"
    assert not table.rows[1][0].best
    assert table.rows[1][1].hint == "1 of 2 seeds"
    assert table.states == [("2 seeds", "good"), ("2 seeds: 1 diverged", "bad")]
    assert not any(cell.best for row in table.rows for cell in row[-2:]), "λ_max, trace: no best"
    assert comparison_table(a_comparison()).common == "2 seeds"


def test_columns_nobody_measured_are_left_out():
    table = run_table([a_history(), a_history("adam", status="early-stopped", note="patience 3")])
    assert "validation loss" not in table.heads
    assert table.states[1] == ("early-stopped: patience 3", "warn")
    nothing = Aggregate(mean=float("nan"), sd=float("nan"), count=0)
    assert "trace" not in comparison_table(a_comparison(rows=(a_row("sgd", trace=nothing),))).heads


def test_spectra_show_the_matrix_only_when_they_differ():
    assert spectrum_table([a_spectrum()]).heads[0] == "largest λ"
    both = spectrum_table([a_spectrum(), a_spectrum(matrix="ggn")])
    assert both.heads[0] == "matrix"
    assert both.rows[0][1].text == "4.00"
    assert both.rows[0][1].spread == "0.010"
    empty = a_spectrum(eigenvalues=np.empty(0), residuals=np.empty(0), status="failed")
    assert spectrum_table([empty]).rows[0][0].text == "–"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_rules_survive_degenerate_planes(share):
    flat = a_plane(fields={"loss": np.full((13, 10), share)})
    assert "barrier" in said(planes=[flat])
