"""Kernel results: what they say, saved and loaded, drawn and put on the page."""

import numpy as np
import pytest
import torch
from test_kernels_ntk import dense_jacobian
from torch.nn.utils import skip_init

from cases import objective
from kobai import Problem, plots, results
from kobai.curvature import dual_eigenvalues
from kobai.kernels import isotropy, measure_isotropy, measure_kernel
from kobai.report import exhibits


@pytest.mark.parametrize("name", ["regression", "mlp", "cnn", "transformer"])
def test_summary_of_a_kernel(name):
    risk = objective(name)
    summary = measure_kernel(risk, label="here", seed=3)
    jacobian = dense_jacobian(risk)
    values = np.linalg.eigvalsh((jacobian @ jacobian.T).numpy() / risk.size)
    np.testing.assert_allclose(summary.eigenvalues, values, atol=1e-9 * values[-1])
    assert summary.learning_rate == pytest.approx(2 / values[-1])
    assert summary.layer_shares.sum() == pytest.approx(1)
    squares = jacobian.square().sum(0)
    first = [n for n in risk.space.names if n.rpartition(".")[0] == summary.layers[0]]
    size = sum(s for n, s in zip(risk.space.names, risk.space.sizes, strict=True) if n in first)
    if risk.space.names[: len(first)] == tuple(first):
        assert summary.layer_shares[0] == pytest.approx(float(squares[:size].sum() / squares.sum()))
    assert (summary.outputs, summary.examples) == (len(jacobian) // risk.size, risk.size)
    assert np.isfinite(summary.alignment) == (name != "transformer")
    assert "layers" in summary.method


def test_for_squared_loss_the_rates_are_those_of_the_fisher_matrix():
    risk = objective("regression")
    np.testing.assert_allclose(
        measure_kernel(risk).eigenvalues, dual_eigenvalues(risk).numpy(), atol=1e-10
    )


def test_large_kernels_are_summed_over_outputs(monkeypatch):
    monkeypatch.setattr("kobai.kernels.measure.LARGEST", 10)
    summary = measure_kernel(objective("mlp"))
    assert summary.kind == "trace"
    assert len(summary.eigenvalues) == 9
    assert np.isnan(summary.learning_rate)
    monkeypatch.setattr("kobai.kernels.measure.LARGEST", 5)
    with pytest.raises(ValueError, match="9"):
        measure_kernel(objective("mlp"))


def test_table_of_all_structures(tmp_path):
    risk = objective("regression")
    table = measure_isotropy(risk, damping=1e-6, label="run")
    assert [row.structure for row in table.rows] == [
        "full", "layer", "tridiagonal", "chain", "unit", "kronecker", "ekfac", "diagonal",
    ]  # fmt: skip
    exact = table.rows[0]
    good = [row for row in table.rows if row.spread <= max(table.tolerance, exact.spread)]
    assert table.cheapest == min(good, key=lambda row: row.cost).structure
    alone = isotropy(risk, "layer", 1e-6)
    assert alone == table.rows[1]
    summary = measure_kernel(risk, label="run")
    results.save(table, tmp_path, "isotropy")
    results.save(summary, tmp_path, "kernel")
    assert results.identical(results.load(tmp_path, "isotropy"), table)
    assert results.identical(results.load(tmp_path, "kernel"), summary)
    shown = exhibits(results.load_all(tmp_path))
    assert [exhibit.title.partition(":")[0] for exhibit in shown] == [
        "Isotropy of natural gradients", "Tangent kernel",
    ]  # fmt: skip
    assert table.cheapest in shown[0].lead
    assert len(shown[0].rows) == 8
    for exhibit in shown:
        for draw in exhibit.figures.values():
            assert plots.to_png(draw())


def test_structures_that_cannot_be_formed_keep_their_row(monkeypatch):
    monkeypatch.setattr("kobai.curvature.structures.coupled_layers.LARGEST_SYSTEM", 20)
    table = isotropy(objective("regression"), damping=1e-3)
    rows = {row.structure: row for row in table.rows}
    assert rows["tridiagonal"].status == "not formed"
    assert "20" in rows["tridiagonal"].reasons[0]
    assert rows["full"].status == "ok"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_has_one_direction_less_an_example_in_any_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    layers = [skip_init(torch.nn.Linear, *sizes, dtype=dtype) for sizes in ((20, 150), (150, 10))]
    model = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1, generator=generator)
    x = torch.randn(12, 20, generator=generator, dtype=dtype)
    y = torch.randint(10, (12,), generator=generator)
    table = isotropy(Problem(model, "categorical", train=(x, y)).objective())
    assert table.directions == 12 * 9
    rows = {row.structure: row for row in table.rows}
    for structure, alpha in (("full", 1), ("layer", 2)):
        assert rows[structure].alpha == pytest.approx(alpha, rel=1e-4)
        assert rows[structure].spread < 1e-4


def test_softmax_is_judged_where_residuals_can_point():
    risk = objective("mlp")
    table = isotropy(risk, "full")
    assert table.alpha == pytest.approx(1)
    assert table.spread < 1e-9
    with pytest.raises(ValueError, match="damping"):
        isotropy(risk, damping=-1.0)
    with pytest.raises(ValueError, match="tolerance"):
        isotropy(risk, tolerance=-1.0)
    assert torch.isfinite(torch.tensor(table.cost))
    # Theory's K-FAC has squared loss in mind: its output layer is the same for every example.
    assert any("output layer" in reason for reason in isotropy(risk, "kronecker").reasons)
    plain = isotropy(objective("regression"), "kronecker")
    assert not any("output layer" in reason for reason in plain.reasons)
