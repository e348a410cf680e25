"""`kobai measure`: every flag's numbers with their errors, saved, drawn and on the page."""

import json

import numpy as np
import pytest
import safetensors.torch
import scipy.linalg
import torch

from kobai.cli import main
from kobai.cli.options import MeasureOptions
from kobai.cli.saved_runs import open_run
from kobai.curvature import Hessian
from kobai.results import CriticalRates, Ladder, SpectralDensity, Spectrum, load_all
from kobai.studies import checkpoint_folder, load_model

SMALL = ["--data", "blobs", "--limit", "60", "--model.widths", "6", "--dtype", "float64"]


@pytest.fixture
def undrawn(monkeypatch):
    """No static figures, which take longer than the numbers."""
    monkeypatch.setattr("kobai.cli.measure.verb.write_figures", lambda folder: [])


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


def test_rates_follow_from_the_largest_eigenvalue(undrawn, capsys, tmp_path):
    found = measured(capsys, tmp_path, "--momentum", "0.5", "--matrix", "ggn")
    top = found["measure_ggn"].eigenvalues[-1]
    values = [rate.value for rate in found["rates_ggn"].rates]
    np.testing.assert_allclose(values, [2 / top, 3 / top, 1.5 / top])


@pytest.mark.parametrize("matrix", ["fisher-kronecker", "fisher-full", "fisher-observed"])
def test_fisher_matrices(undrawn, capsys, tmp_path, matrix):
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


TINY = ["--data", "blobs", "--limit", "60", "--dtype", "float64"]


@pytest.fixture(scope="module")
def adam_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adam") / "run"
    flags = ["--optimizer", "adam", "--epochs", "2", "--model.widths", "6", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kobai.cli.training.train.write_figures", lambda folder: [])
        assert main(["train", *TINY, *flags]) == 0
    return folder


def test_an_adam_run_brings_its_own_rule(undrawn, adam_run, tmp_path):
    """Against the dense generalised eigenproblem H v = λ P v with P from the optimizer's file."""
    assert main(["measure", str(adam_run), "--out", str(tmp_path)]) == 0
    (rates,) = [r for r in load_all(tmp_path).values() if isinstance(r, CriticalRates)]
    (rate,) = [r for r in rates.rates if r.method.startswith("Adam")]
    setting, (spec,) = open_run(adam_run, MeasureOptions())
    problem = load_model(setting, spec, adam_run)
    state = torch.load(checkpoint_folder(adam_run, spec.label) / "state.pt", weights_only=True)[
        "optimizer"
    ]
    group = state["param_groups"][0]
    steps = float(state["state"][0]["step"])
    moment = torch.cat([m["exp_avg_sq"].flatten() for m in state["state"].values()])
    divisor = (moment / (1 - group["betas"][1] ** steps)).sqrt() + group["eps"]
    hessian = Hessian(problem.objective()).dense()
    top = float(scipy.linalg.eigvalsh(hessian.numpy(), torch.diag(divisor).numpy())[-1])
    beta = group["betas"][0]
    assert rate.value == pytest.approx((2 + 2 * beta) / ((1 - beta) * top), rel=1e-3)
    assert rate.status == "converged"


def test_adam_without_a_run_divides_by_single_example_gradients(undrawn, capsys, tmp_path):
    found = measured(capsys, tmp_path, "--preconditioner", "adam,diagonal")
    methods = [rate.method for rate in found["rates_hessian"].rates]
    assert methods[-1] == "Adam, β₁ = 0.9, single-example gradients"
    assert "diagonal" in methods[-2]


@pytest.mark.parametrize("kind", ["model.safetensors", "plain.pt", "nested.pth"])
def test_a_model_file_is_measured_like_the_run_it_came_from(undrawn, adam_run, tmp_path, kind):
    folder = checkpoint_folder(adam_run, "adam-s0")
    tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    path = folder / kind
    if kind == "plain.pt":
        torch.save(tensors, path := tmp_path / kind)
    elif kind == "nested.pth":
        state = torch.load(folder / "state.pt", weights_only=True)["optimizer"]
        torch.save({"model": tensors, "optimizer": state}, path := tmp_path / kind)
    flags = ["--model.widths", "6", "--checkpoint", str(path), "--out", str(tmp_path / "of")]
    assert main(["measure", *TINY, *flags]) == 0
    assert main(["measure", str(adam_run), "--out", str(tmp_path / "run")]) == 0
    found = load_all(tmp_path / "of")
    run = load_all(tmp_path / "run")["measure_hessian_adam-s0"]
    stem = path.stem
    np.testing.assert_allclose(found[f"measure_hessian_{stem}"].eigenvalues, run.eigenvalues)
    methods = [rate.method for rate in found[f"rates_hessian_{stem}"].rates]
    assert any(m.startswith("Adam") for m in methods) == (kind == "nested.pth")


def test_files_that_are_no_checkpoints_are_refused(adam_run, capsys, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"no")
    (tmp_path / "notes.txt").write_bytes(b"no")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    good = checkpoint_folder(adam_run, "adam-s0") / "model.safetensors"
    for flags, said in (
        (["--checkpoint", str(tmp_path / "absent.pt")], "no such file"),
        (["--checkpoint", str(tmp_path / "notes.txt")], ".safetensors"),
        (["--checkpoint", str(tmp_path / "broken.pt")], "cannot be read"),
        (["--checkpoint", str(tmp_path / "numbers.pt")], "no tensors by name"),
        (["--checkpoint", str(good), "--model.widths", "7"], "another model"),
        ([str(adam_run), "--checkpoint", str(good)], "not both"),
    ):
        capsys.readouterr()
        assert main(["measure", *TINY, *flags]) == 2
        assert said in capsys.readouterr().err


def test_the_kernel_and_isotropy_of_a_model(tmp_path, capsys):
    out = tmp_path / "kernel"
    words = ["--data", "blobs", "--limit", "40", "--model.widths", "8", "--curvature.examples"]
    words += ["20", "--kernel", "--isotropy", "--kernel-examples", "6", "--out", str(out)]
    words += ["--damping", "1e-9", "--dtype", "float64"]
    assert main(["measure", *words]) == 0
    found = load_all(out)
    kernel, table = found["kernel"], found["isotropy"]
    assert kernel.examples == table.examples == 6
    exact = next(row for row in table.rows if row.structure == "full")
    assert exact.alpha == pytest.approx(1.0, abs=1e-2)
    told = capsys.readouterr().out
    assert "tangent kernel" in told
    assert "isotropy of natural gradients" in told
    assert (out / "figures" / "isotropy.png").is_file()
    assert main(["measure", *words, "--kernel-examples", "0"]) == 2
