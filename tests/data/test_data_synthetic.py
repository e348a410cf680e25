"""Synthetic sets: sizes, balance, the formulas they state, and nothing but their generator."""

import math

import pytest
import torch

from kobai import seeds
from kobai.data import DataError, blobs, spirals, teacher

MAKERS = {"spirals": spirals, "blobs": blobs, "teacher": teacher}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_generator_decides(make):
    first, again, other = (
        make(train=30, test=20, generator=seeds.generator(s, "data")) for s in (0, 0, 1)
    )
    assert [len(first.train[0]), len(first.test[0])] == [30, 20]
    for ours, theirs in zip((*first.train, *first.test), (*again.train, *again.test), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(first.train[0], other.train[0])
    assert not torch.equal(first.train[0][:20], first.test[0])


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_refuses_empty_sets(make, generator):
    with pytest.raises(DataError, match="train is 0"):
        make(train=0, generator=generator)


def test_spirals_without_noise_lie_on_their_curves(generator):
    x, y = spirals(train=400, turns=2.0, noise=0.0, generator=generator).train
    radius = x.norm(dim=1)
    angle = 4 * math.pi * radius + math.pi * y
    expected = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)
    assert y.bincount().tolist() == [200, 200]
    # r² is uniform: its mean is 1/2 with standard error 1/√(12 · 400).
    assert abs(radius.square().mean() - 0.5) < 4 / math.sqrt(12 * 400)


def test_blobs_have_unit_variance_about_their_centres(generator):
    data = blobs(train=6000, classes=3, dimension=4, generator=generator)
    x, y = data.train
    assert (data.num_classes, data.input_shape) == (3, (4,))
    for label in range(3):
        # The variance of s² is 2/(n − 1).
        error = (x[y == label].var(0) - 1).abs().max()
        assert error < 5 * math.sqrt(2 / 1999)


def test_a_teacher_without_noise_is_a_function_of_its_inputs(generator):
    data = teacher(train=300, inputs=4, hidden=3, outputs=2, generator=generator)
    x, y = data.train
    assert (data.likelihood, data.num_classes, data.output_size) == ("gaussian", None, 2)
    assert y.shape == (300, 2)
    # tanh is odd and the network has no biases: the nearest inputs have near targets.
    assert 0.05 < y.std() < 3
    distance = torch.cdist(x, x) + 10 * torch.eye(300)
    near = distance.argmin(1)
    slope = (y - y[near]).norm(dim=1) / distance.min(1).values
    assert slope.max() < 10
