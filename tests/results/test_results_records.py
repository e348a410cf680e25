"""What the records refuse, fill in and count."""

import csv
import dataclasses
import math
import platform

import jaxtyping
import numpy as np
import pytest

from kobai.results import (
    History,
    Plane,
    Spectrum,
    Trajectory,
    aggregate,
    history_to_csv,
    provenance,
)
from kobai.results.origin import _commit


@pytest.fixture(autouse=True)
def _as_users_call():
    """Outside the tests nobody checks annotations: the records themselves must refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def history(**changes) -> History:
    given = {
        "label": "sgd, 0",
        "optimizer": "sgd",
        "seed": 0,
        "status": "finished",
        "step": [0, 10],
        "epoch": [0.0, 1.0],
        "seconds": [0.0, 0.25],
        "train_loss": [2.3, 1 / 3],
    }
    return History(**{**given, **changes})


def test_columns_left_out_are_nan():
    record = history()
    assert np.isnan(record.test_accuracy).all()
    assert record.test_accuracy.shape == (2,)
    assert record.step.dtype == np.int64
    assert record.step_loss.shape == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_loss": [1.0]}, r"History.train_loss has shape \(1,\).*T is 2 by step"),
        ({"step_loss": [[1.0]]}, "History.step_loss.*1 dimension"),
        ({"status": "done"}, "History.status is 'done'; expected one of finished"),
        ({"epoch": ["x", "y"]}, "History.epoch must be an array of numbers"),
        ({"seed": 0.5}, "History.seed: got 0.5, expected a whole number"),
    ],
)
def test_histories_refuse(changes, message):
    with pytest.raises(ValueError, match=message):
        history(**changes)


def test_spectra_refuse_disorder():
    good = {
        "label": "s",
        "matrix": "ggn",
        "dimension": 2,
        "eigenvalues": [1.0, 2.0],
        "residuals": [0.0, 0.0],
        **dict.fromkeys(("trace", "trace_error", "gradient_norm", "loss"), 0.0),
        "num_products": 2,
        "status": "converged",
    }
    assert Spectrum(**good).seed is None
    with pytest.raises(ValueError, match="ascending"):
        Spectrum(**{**good, "eigenvalues": [2.0, 1.0]})
    with pytest.raises(ValueError, match="residuals has shape"):
        Spectrum(**{**good, "residuals": [0.0]})
    with pytest.raises(ValueError, match="2 eigenvalues of a matrix of dimension 1"):
        Spectrum(**{**good, "dimension": 1})


def test_planes_refuse_transposed_fields():
    plane = Plane(
        label="p",
        kind="random",
        a=[0.0, 1.0],
        b=[0.0, 1.0, 2.0],
        axis_names=("x", "y"),
        fields={"loss": np.zeros((2, 3))},
        direction_norms=[1.0, 1.0],
        cosine=0,
        origin="",
    )
    assert plane.points == {}
    with pytest.raises(ValueError, match=r"fields\['loss'\] has shape \(3, 2\).*first index a"):
        dataclasses.replace(plane, fields={"loss": np.zeros((3, 2))})
    with pytest.raises(ValueError, match=r"Plane\.a must be at least two"):
        dataclasses.replace(plane, a=np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="axis_names"):
        dataclasses.replace(plane, axis_names=("x",))
    with pytest.raises(ValueError, match=r"points\['end'\]"):
        dataclasses.replace(plane, points={"end": np.zeros(3)})
    with pytest.raises(ValueError, match="coordinates has shape"):
        Trajectory(label="t", coordinates=np.zeros((2, 3)), off_plane=[0, 0], loss=[0, 0])


def test_aggregate_counts_only_finite_values():
    numbers = aggregate([1.0, 3.0, math.nan, math.inf])
    assert (numbers.mean, numbers.count) == (2.0, 2)
    assert numbers.sd == pytest.approx(math.sqrt(2.0))
    alone = aggregate([5])
    assert (alone.mean, alone.count) == (5.0, 1)
    assert math.isnan(alone.sd)
    assert math.isnan(aggregate([]).mean)


def test_csv_is_one_row_a_record_with_empty_cells(tmp_path):
    path = history_to_csv(
        [history(), history(label="adam", seed=1)], tmp_path / "m" / "metrics.csv"
    )
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    assert rows[0]["label"] == "sgd, 0"
    assert float(rows[1]["train_loss"]) == 1 / 3
    assert rows[1]["test_loss"] == ""
    assert [row["step"] for row in rows] == ["0", "10", "0", "10"]


def test_provenance_reads_the_machine():
    record = provenance(command="kobai compare", seed=np.int64(4), threads=2, torch="9.9")
    assert record.torch == "9.9"
    assert record.python == platform.python_version()
    assert record.numpy == np.__version__
    assert record.seed == 4
    assert math.isnan(record.seconds)
    assert "T" in record.started
    assert provenance(command="", seed=0).torch not in {"", "9.9"}


def test_the_commit_of_another_repository_is_not_ours(tmp_path):
    assert _commit(tmp_path) == ""
