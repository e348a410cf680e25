"""`kobai measure`: every flag's numbers with their errors, saved, drawn and on the page."""

import json

import numpy as np
import pytest

from kobai.cli import main
from kobai.results import CriticalRates, Ladder, SpectralDensity, Spectrum, load_all

SMALL = ["--data", "blobs", "--limit", "60", "--model.widths", "6", "--dtype", "float64"]


def measured(capsys, tmp_path, *flags: str) -> dict:
    capsys.readouterr()
    assert main(["measure", *SMALL, "--out", str(tmp_path), *flags, "--json"]) == 0
    json.loads(capsys.readouterr().out)
    return load_all(tmp_path)


def test_everything_at_once(capsys, tmp_path):
    found = measured(
        capsys, tmp_path, "--which", "both", "--density", "--per-layer", "--exactness",
        "--preconditioner", "kronecker,diagonal", "--probes", "3", "--steps", "10",
    )  # fmt: skip
    kinds = [type(result) for result in found.values()]
    assert kinds.count(Spectrum) == kinds.count(CriticalRates) == kinds.count(Ladder) == 1
    densities = [r for r in found.values() if isinstance(r, SpectralDensity)]
    assert len(densities) == 1 + len({d.block for d in densities if d.block})
    whole = found["density_hessian"]
    assert sum(d.dimension for d in densities if d.block) == whole.dimension
    assert 0 <= whole.negative_low <= whole.negative_fraction <= whole.negative_high <= 1
    assert whole.negative_bracket_low <= whole.negative_fraction <= whole.negative_bracket_high
    step = whole.grid[1] - whole.grid[0]
    assert (whole.positive.sum() + whole.negative.sum()) * step <= 1 + 1e-6
    assert (tmp_path / "figures" / "density_hessian.png").is_file()
    page = (tmp_path / "report.html").read_text()
    for said in (
        "Critical learning rates",
        "Spectral density",
        "kronecker preconditioner",
        "ekfac",
    ):
        assert said in page


def test_rates_follow_from_the_largest_eigenvalue(capsys, tmp_path):
    found = measured(capsys, tmp_path, "--momentum", "0.5", "--matrix", "ggn")
    top = found["measure_ggn"].eigenvalues[-1]
    values = [rate.value for rate in found["rates_ggn"].rates]
    np.testing.assert_allclose(values, [2 / top, 3 / top, 1.5 / top])


@pytest.mark.parametrize("matrix", ["fisher-kronecker", "fisher-full", "fisher-observed"])
def test_fisher_matrices(capsys, tmp_path, matrix):
    spectrum = measured(capsys, tmp_path, "--matrix", matrix)[f"measure_{matrix}"]
    assert spectrum.status == "converged"
    assert spectrum.eigenvalues[0] >= -1e-9


@pytest.mark.parametrize(
    "flags",
    [
        ["--momentum", "1"],
        ["--probes", "0"],
        ["--steps", "0"],
        ["--damping", "0"],
        ["--density-tolerance", "-1"],
        ["--preconditioner", "kroneker"],
        ["--preconditioner", "kronecker", "--which", "smallest"],
    ],
    ids=" ".join,
)
def test_wrong_use(capsys, tmp_path, flags):
    assert main(["measure", *SMALL, "--out", str(tmp_path / "out"), *flags]) == 2
    assert flags[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
