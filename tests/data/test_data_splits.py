"""`DataSplits` lets in whole data sets and nothing else."""

import dataclasses

import pytest
import torch

from kobai.data import DataError, DataSplits


def splits(**changes):
    facts = {
        "name": "toy",
        "train": (torch.zeros(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])),
        "test": (torch.zeros(2, 3), torch.tensor([0, 1])),
        "num_classes": 3,
        "likelihood": "categorical",
        "source": "toy set",
    }
    return DataSplits(**(facts | changes))


def test_facts_for_building_a_model():
    toy = splits()
    assert toy.input_shape == (3,)
    assert toy.output_size == 3
    assert toy.classes == ("0", "1", "2")
    assert toy.describe() == ("6 training and 2 test examples of shape (3,), 3 classes; toy set")
    real = splits(
        train=(torch.zeros(6, 3), torch.zeros(6, 4)),
        test=None,
        num_classes=None,
        likelihood="gaussian",
    )
    assert real.output_size == 4
    assert real.classes == ()
    assert "gaussian targets" in real.describe()


def test_is_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        splits().name = "other"
    with pytest.raises(TypeError):
        DataSplits("toy", None, None)


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BAD = {
    "flat inputs": ({"train": (torch.zeros(6), LABELS)}, "expected \\(examples"),
    "unpaired": ({"train": (torch.zeros(5, 3), LABELS)}, "5 inputs but 6 targets"),
    "empty": ({"train": (torch.zeros(0, 3), LABELS[:0])}, "no examples"),
    "empty inputs": ({"train": (torch.zeros(6, 0), LABELS)}, "no examples"),
    "complex": ({"train": (torch.zeros(6, 3, dtype=torch.complex64), LABELS)}, "complex64"),
    "infinite": ({"train": (torch.full((6, 3), torch.inf), LABELS)}, "6 of 6 examples"),
    "float labels": ({"train": (torch.zeros(6, 3), LABELS.float())}, "expected int64"),
    "negative label": ({"train": (torch.zeros(6, 3), LABELS - 1)}, "number the classes from 0"),
    "high label": ({"train": (torch.zeros(6, 3), LABELS + 1)}, "expected 0 to 2"),
    "high test label": ({"test": (torch.zeros(1, 3), torch.tensor([3]))}, "test: labels run"),
    "one class": ({"num_classes": 1, "train": (torch.zeros(6, 3), LABELS * 0)}, "two or more"),
    "unknown classes": ({"num_classes": None}, "two or more"),
    "too few names": ({"classes": ("a", "b")}, "2 class names for 3 classes"),
    "other test shape": ({"test": (torch.zeros(2, 4), LABELS[:2])}, "train and test inputs differ"),
    "other test type": ({"test": (torch.zeros(2, 3).double(), LABELS[:2])}, "float64 of shape"),
    "integer regression": (
        {"likelihood": "gaussian", "num_classes": None},
        "expected real numbers",
    ),
    "classes of a regression": ({"likelihood": "gaussian"}, "categorical targets only"),
    "improbable": (
        {
            "likelihood": "bernoulli",
            "num_classes": None,
            "train": (torch.zeros(6, 3), torch.full((6, 2), 1.5)),
        },
        "expected probabilities",
    ),
    "infinite target": (
        {
            "likelihood": "gaussian",
            "num_classes": None,
            "train": (torch.zeros(6, 3), torch.full((6, 2), torch.nan)),
        },
        "targets of 6 of 6 examples",
    ),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_refuses(changes, message):
    with pytest.raises(DataError, match=message):
        splits(**changes)


def test_names_the_example_that_is_not_finite():
    x = torch.zeros(6, 2, 2)
    x[4, 1, 0] = torch.nan
    with pytest.raises(DataError, match=r"inputs of 1 of 6 examples.*example 4"):
        splits(train=(x, LABELS), test=None)


def test_data_errors_are_value_errors():
    assert issubclass(DataError, ValueError)
