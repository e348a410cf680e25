"""Test sets, subsets, pixel scales and standardisation keep the promises of their docstrings."""

import pytest
import torch

from kobai import seeds
from kobai.data import DataError, DataSplits, standardize, subset
from kobai.data.prepare import draw_test, scale_pixels


def labelled(counts, *, dtype=torch.float64):
    y = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    y = y[torch.randperm(len(y), generator=seeds.generator(1, "order"))]
    x = torch.randn(len(y), 2, generator=seeds.generator(1, "inputs"), dtype=dtype)
    return DataSplits(
        name="toy", train=(x, y), test=(x[:9], y[:9]), num_classes=len(counts),
        likelihood="categorical", source="toy",
    )  # fmt: skip


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_every_class_gives_its_share_to_the_test_set(fraction, generator):
    y = labelled([50, 20, 10]).train[1]
    train, test = draw_test(y, fraction, stratify=True, generator=generator)
    assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(80))
    assert torch.equal(train, train.sort().values)
    assert y[test].bincount().tolist() == [round(fraction * n) for n in (50, 20, 10)]


def test_a_test_set_never_takes_the_last_example_of_a_class(generator):
    y = torch.tensor([0] * 20 + [2])
    train, _ = draw_test(y, 0.9, stratify=True, generator=generator)
    assert y[train].bincount().tolist() == [2, 0, 1]


def test_draws_depend_on_the_generator_alone():
    y = labelled([50, 20]).train[1]
    first, again, other = (
        draw_test(y, 0.2, stratify=True, generator=seeds.generator(s, "split"))[1]
        for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("fraction", [-0.1, 0.0, 1.0, float("nan")])
def test_refuses_fractions_outside_the_unit_interval(fraction, generator):
    with pytest.raises(DataError, match="between 0 and 1"):
        draw_test(torch.zeros(9), fraction, stratify=False, generator=generator)


def test_refuses_a_test_set_of_nothing(generator):
    with pytest.raises(DataError, match="leaves no test examples"):
        draw_test(torch.zeros(3), 0.1, stratify=False, generator=generator)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1, [1, 0, 0]), (6, [2, 2, 2]), (12, [5, 5, 2]), (45, [23, 20, 2]), (500, [50, 20, 2])],
)
@pytest.mark.parametrize("drawn", [False, True])
def test_a_subset_is_as_even_as_the_classes_allow(limit, expected, drawn):
    toy = labelled([50, 20, 2])
    kept = subset(toy, train=limit, generator=seeds.generator(0, "s") if drawn else None)
    counts = kept.train[1].bincount(minlength=3).tolist()
    assert counts == expected
    assert kept.num_classes == 3
    assert kept.test is toy.test


def test_the_first_subset_is_the_first_of_each_class_in_order():
    toy = labelled([50, 20, 10])
    x, y = toy.train
    kept = subset(toy, train=9, test=3, generator=None)
    first = torch.cat([(y == c).nonzero()[:3, 0] for c in range(3)]).sort().values
    assert torch.equal(kept.train[0], x[first])
    assert kept.test is not None
    assert len(kept.test[0]) == 3


def test_a_regression_keeps_its_first_examples(generator):
    x = torch.arange(10.0)[:, None]
    toy = DataSplits(name="r", train=(x, x), test=None, likelihood="gaussian", source="r")
    assert torch.equal(subset(toy, train=4, generator=None).train[0], x[:4])
    drawn = subset(toy, train=4, test=2, generator=generator)
    assert drawn.test is None
    assert len(drawn.train[0].unique()) == 4


@pytest.mark.parametrize("limit", [0, -3])
def test_refuses_limits_that_are_not_positive(limit):
    with pytest.raises(DataError, match="expected at least 1"):
        subset(labelled([5, 5]), train=limit, generator=None)


def test_pixels_and_booleans_become_unit_floats():
    x = torch.arange(256, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    y = torch.arange(256) % 2
    toy = DataSplits(
        name="p", train=(x, y), test=(x, y), num_classes=2, likelihood="categorical", source="p"
    )
    scaled = scale_pixels(toy)
    assert scaled.train[0].dtype == torch.float32
    torch.testing.assert_close(scaled.train[0], x / 255, rtol=0, atol=0)
    assert torch.equal(x, toy.train[0])
    boolean = scale_pixels(labelled([3, 3])).train[0]
    assert boolean.dtype == torch.float64


@pytest.mark.parametrize("shape", [(40, 3), (40, 3, 5), (40, 3, 4, 5)])
def test_standardised_inputs_have_mean_zero_and_variance_one(shape, generator):
    x = 3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    x[:, 1] = 0.1
    y = torch.zeros(40, 1)
    toy = DataSplits(name="s", train=(x, y), test=(x[:4], y[:4]), likelihood="gaussian", source="s")
    done = standardize(toy)
    columns = done.train[0].movedim(1, 0).flatten(1)
    torch.testing.assert_close(columns.mean(1), torch.zeros(3, dtype=x.dtype))
    torch.testing.assert_close(
        columns.square().mean(1), torch.tensor([1.0, 0, 1], dtype=torch.float64)
    )
    info = done.standardization
    assert info is not None
    assert info.std[1] == 1
    back = columns * info.std[:, None] + info.mean[:, None]
    torch.testing.assert_close(back, x.movedim(1, 0).flatten(1))
    assert done.test is not None
    torch.testing.assert_close(done.test[0], done.train[0][:4])
    with pytest.raises(DataError, match="already"):
        standardize(done)


def test_tokens_are_not_standardised():
    y = torch.tensor([0, 1])
    toy = DataSplits(
        name="t", train=(torch.ones(2, 5, dtype=torch.int64), y), test=None, num_classes=2,
        likelihood="categorical", source="t",
    )  # fmt: skip
    with pytest.raises(DataError, match="only real inputs"):
        standardize(toy)
