"""Data sets made by a function of the user's own."""

import pytest
import torch

from kobai import seeds
from kobai.data import DataError, load

MODULE = """
import numpy as np
import torch
from kobai.data import blobs

X = torch.arange(40.0, dtype=torch.float64).reshape(20, 2)
Y = torch.arange(20) % 2


def pair():
    return X, Y


def pairs():
    return (X, Y), (X[:3], Y[:3])


def lists():
    return X.tolist(), Y.tolist()


def arrays():
    return [X.numpy(), np.linspace(0, 1, 20)]


def read_only():
    x = X.numpy().copy()
    x.flags.writeable = False
    return x, Y.numpy()


def finished(*, generator):
    return blobs(train=10, test=5, generator=generator)


def nothing():
    return None


def broken():
    raise KeyError("mine")


number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "users_data.py").write_text(MODULE)
    (tmp_path / "users_broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_pairs_of_tensors_keep_their_type():
    data = load("users_data:pair")
    assert data.train[0].dtype == torch.float64
    assert (len(data.train[0]), data.num_classes) == (16, 2)
    data = load("users_data:pairs")
    assert data.test is not None
    assert (len(data.train[0]), len(data.test[0])) == (20, 3)


def test_arrays_and_lists_are_taken_too():
    assert load("users_data:arrays").likelihood == "gaussian"
    assert load("users_data:lists", test_fraction=0.0).train[0].dtype == torch.float32
    assert load("users_data:read_only").num_classes == 2


def test_a_finished_data_set_gets_the_generator():
    first = load("users_data:finished", generator=seeds.generator(1, "data"))
    second = load("users_data:finished", generator=seeds.generator(1, "data"))
    assert first.name == "blobs"
    assert torch.equal(first.train[0], second.train[0])
    with pytest.raises(DataError, match="leave likelihood and test_fraction out"):
        load("users_data:finished", test_fraction=0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "there is no module no_such_module"),
        ("users_data.deeper:f", "there is no module users_data.deeper"),
        ("users_data:absent", "has no function 'absent'"),
        ("users_data:number", "has no function 'number'"),
        ("users_data:", "has no function ''"),
        ("users_data:nothing", "returned NoneType; expected DataSplits"),
    ],
)
def test_refuses(name, message):
    with pytest.raises(DataError, match=message):
        load(name)


def test_the_users_own_errors_pass_through():
    with pytest.raises(KeyError, match="mine"):
        load("users_data:broken")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        load("users_broken:f")
