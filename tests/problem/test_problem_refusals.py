"""Bad input to a problem: one clear error that names the split, at once or when it is loaded."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from kobai.problem import Batch, Problem

X, Y = torch.ones(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])


def model(outputs: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


def with_value(value: float) -> torch.Tensor:
    x = X.clone()
    x[4, 1] = value
    return x


class Items(Dataset):
    """A map-style data set over given tensors."""

    def __init__(self, x=X, y=Y) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Stream(IterableDataset):
    def __iter__(self):
        yield X[0], Y[0]


class NoLength(Dataset):
    def __getitem__(self, i):
        return X[i], Y[i]


class Own(Sampler):
    def __iter__(self):
        yield from [0, 1]

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("holder", [tuple, lambda pair: TensorDataset(*pair)])
def test_inputs_that_are_not_finite(value, holder):
    with pytest.raises(ValueError, match=r"train: the inputs of 1 of 6 examples hold NaN"):
        Problem(model(), "categorical", train=holder((with_value(value), Y)))


def test_inputs_that_are_not_finite_in_other_forms():
    bad = torch.tensor([0.0, math.nan, 1.0])
    with pytest.raises(ValueError, match="train: the inputs of 1 of 3 examples"):
        Problem(model(), "gaussian", train=(bad, bad))
    with pytest.raises(ValueError, match="test: the inputs of 1 of 6 examples"):
        Problem(model(), "categorical", train=(X, Y), test=({"x": with_value(math.nan)}, Y))


def test_a_data_set_is_checked_as_it_is_loaded():
    streamed = Problem(model(), "categorical", train=Items(with_value(math.nan))).objective(chunk=2)
    with pytest.raises(ValueError, match="train: the inputs of 1 of 2 examples hold NaN"):
        streamed.value(streamed.theta())
    far = Y.clone()
    far[5] = 2
    streamed = Problem(model(), "categorical", train=(X, Y), test=Items(X, far))
    objective = streamed.objective(split="test", chunk=2)
    with pytest.raises(ValueError, match=r"test: class indices must lie in 0…1.*got 0…2"):
        objective.metrics()
    generator = torch.Generator().manual_seed(0)
    streamed = Problem(model(), "categorical", train=Items(X, far))
    with pytest.raises(ValueError, match="train: class indices"):
        list(streamed.minibatches(2, generator=generator))


@pytest.mark.parametrize(
    ("likelihood", "targets", "message"),
    [
        ("categorical", torch.tensor([0, 1, 2, 0, 0, 0]), r"0…1 for a model with 2.*0…2"),
        ("categorical", torch.tensor([0, 1, -1, 0, 0, 0]), r"0…1.*-1…1"),
        ("categorical", Y.unsqueeze(1), r"shape \(6,\), got \(6, 1\)"),
        ("categorical", Y.float(), r"soft targets must have.*\(6, 2\), got \(6,\)"),
        ("categorical", Y.int(), "int64, got torch.int32"),
        (nn.CrossEntropyLoss(), Y + 5, r"0…1 for a model with 2.*5…6"),
        ("bernoulli", Y.float(), r"outputs' shape \(6, 2\), got \(6,\)"),
        ("bernoulli", torch.full((6, 2), 1.5), r"\[0, 1\], got 1.5…1.5"),
        ("gaussian", Y.float().unsqueeze(1), r"outputs' shape \(6, 2\), got \(6, 1\)"),
        ("gaussian", torch.zeros(6, 2).long(), "floating point, got torch.int64"),
        (nn.MSELoss(), torch.full((6, 2), math.nan), "targets hold NaN"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_targets_that_do_not_fit(split, likelihood, targets, message):
    good = {
        "categorical": Y,
        "bernoulli": torch.zeros(6, 2),
        "gaussian": torch.zeros(6, 2),
        "CrossEntropyLoss": Y,
        "MSELoss": torch.zeros(6, 2),
    }[likelihood if isinstance(likelihood, str) else type(likelihood).__name__]
    data = {"train": (X, good), split: (X, targets)}
    with pytest.raises(ValueError, match=f"{split}: .*{message}"):
        Problem(model(), likelihood, **data)


def test_too_few_outputs_for_the_classes():
    with pytest.raises(ValueError, match="widen the model or fix the labels"):
        Problem(model(1), "categorical", train=(X, Y))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.ones(6, 4), r"does not accept inputs of shape \[\(4,\)\]"),
        (torch.ones(6, 3).double(), "torch.float64 but the model computes in torch.float32"),
        (torch.ones(6, 3).half(), "torch.float16 but the model"),
        (torch.ones(6, 3).long(), "does not accept inputs"),
        ((X, X), r"does not accept inputs of shape \[\(3,\), \(3,\)\]"),
        ({"wrong": X}, "does not accept inputs"),
    ],
)
def test_inputs_that_do_not_fit(inputs, message):
    with pytest.raises(ValueError, match=f"train: .*{message}"):
        Problem(model(), "categorical", train=(inputs, Y))


def test_tokens_beyond_the_table():
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"train: the model does not accept.*index out of range"):
        Problem(net, "categorical", train=(torch.full((6, 1), 3), Y))


class Returning(nn.Module):
    """Returns what a function makes of a linear layer's outputs."""

    def __init__(self, function) -> None:
        super().__init__()
        with torch.random.fork_rng():
            self.linear = nn.Linear(3, 2)
        self.function = function

    def forward(self, x):
        return self.function(self.linear(x))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda f: f.mean(0, keepdim=True), "one row of outputs an example.*for 2 example"),
        (lambda f: f.sum(), r"got shape \(\) for 2 example"),
        (lambda f: f.T.reshape(1, -1), "one row of outputs an example"),
        (lambda f: f.argmax(1, keepdim=True).expand(-1, 2), "floating-point outputs"),
        (lambda f: f[:, 0], "class axis"),
    ],
)
def test_outputs_that_do_not_fit(function, message):
    with pytest.raises(ValueError, match=f"train: .*{message}"):
        Problem(Returning(function), "categorical", train=(X, Y))


def test_a_missing_class_axis_in_torchs_convention():
    with pytest.raises(ValueError, match="class axis"):
        Problem(Returning(lambda f: f[:, 0]), nn.CrossEntropyLoss(), train=(X, Y))


def test_unclear_outputs():
    with pytest.raises(TypeError, match="must return one tensor"):
        Problem(Returning(lambda f: (f, f)), "categorical", train=(X, Y))


def test_a_model_that_squeezes_is_fine_with_more_than_one_example():
    subject = Problem(Returning(lambda f: f[:, :1].squeeze()), "gaussian", train=(X, Y.float()))
    assert subject.objective(chunk=6).size == 6


def test_a_batch_whose_targets_would_broadcast():
    """(N,) against (N, 1) gives N² differences in torch."""
    for likelihood in ("gaussian", "bernoulli"):
        subject = Problem(model(1), likelihood, train=(X, torch.zeros(6, 1)))
        objective = subject.objective(Batch(X, torch.zeros(6)))
        with pytest.raises(ValueError, match="broadcasting would be wrong"):
            objective.value(objective.theta())
        with pytest.raises(ValueError, match="broadcasting would be wrong"):
            objective()
        outputs = torch.zeros(6, 1)
        with pytest.raises(ValueError, match="broadcasting would be wrong"):
            subject.likelihood.residual(outputs, torch.zeros(6))


def test_a_model_that_drops_examples():
    subject = Problem(Returning(lambda f: f[:2]), "categorical", train=(X, Y))
    objective = subject.objective(chunk=6)
    with pytest.raises(ValueError, match=r"one row of outputs an example.*\(2, 2\) for 6"):
        objective.value(objective.theta())


def test_nothing_to_learn():
    with pytest.raises(ValueError, match="no trainable parameters"):
        Problem(model().requires_grad_(False), "categorical", train=(X, Y))
    with pytest.raises(ValueError, match="Flatten has no trainable parameters"):
        Problem(nn.Flatten(), "categorical", train=(X, Y))


@pytest.mark.parametrize(
    "data",
    [
        (X[:0], Y[:0]),
        TensorDataset(X[:0], Y[:0]),
        Items(X[:0], Y[:0]),
        DataLoader(Items(X[:0], Y[:0])),
        DataLoader(TensorDataset(X[:0], Y[:0])),
    ],
)
def test_no_examples(data):
    with pytest.raises(ValueError, match=r"test: .*at least one example"):
        Problem(model(), "categorical", train=(X, Y), test=data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X, "pairs"),
        ((X,), "pairs"),
        ((X, Y, Y), "pairs"),
        (None, "pairs"),
        ("digits", "pairs"),
        ((X.numpy(), Y.numpy()), None),
        ((X, np.arange(6)), None),
        (Stream(), "iterable-style data set"),
        (DataLoader(Stream()), "iterable-style data set"),
        (NoLength(), "NoLength has no length"),
        (DataLoader(Items(), batch_size=None), "batch_size=None"),
        (DataLoader(Items(), sampler=RandomSampler(Items(), replacement=True)), "RandomSampler"),
        (DataLoader(Items(), sampler=RandomSampler(Items(), num_samples=3)), "RandomSampler"),
        (DataLoader(Items(), sampler=WeightedRandomSampler([1.0] * 6, 6)), "Weighted.*Subset"),
        (DataLoader(Items(), sampler=Own()), "chooses its examples by a Own"),
        (DataLoader(Items(), batch_sampler=[[0, 1], [2]]), "chooses its examples by a list"),
    ],
)
def test_data_of_no_known_kind(data, message):
    with pytest.raises(TypeError, match=f"train: .*{message}" if message else "train"):
        Problem(model(), "categorical", train=data)


def test_items_that_are_no_pairs():
    with pytest.raises(TypeError, match="pairs"):
        Problem(model(), "categorical", train=DataLoader([{"x": x} for x in X]))  # type: ignore[arg-type]


def test_shapes_that_disagree():
    with pytest.raises(ValueError, match=r"train: inputs and targets must agree.*\(6, 3\).*\(5,\)"):
        Problem(model(), "categorical", train=(X, Y[:5]))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, 0.01, 0.99, math.nan, math.inf, 1])
def test_fractions_that_leave_nothing(fraction):
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="must leave examples on both sides"):
        Problem(model(), "categorical", train=(X, Y), validation=fraction, generator=generator)


def test_a_fraction_needs_a_generator():
    with pytest.raises(ValueError, match=r"needs generator=torch.Generator\(\)"):
        Problem(model(), "categorical", train=(X, Y), validation=0.5)
    generator = torch.Generator().manual_seed(0)
    half = Problem(
        model(), "categorical", train=(X, Y), validation=np.float32(0.5), generator=generator
    )
    assert half.examples("validation").size == 3


@pytest.mark.parametrize("size", [0, -2])
@pytest.mark.parametrize("data", [(X, Y), Items()])
def test_sizes_that_are_none(data, size):
    subject = Problem(model(), "categorical", train=data)
    with pytest.raises(ValueError, match="chunk size must be at least 1"):
        subject.objective(chunk=size)
    with pytest.raises(ValueError, match="batch size must be at least 1"):
        subject.minibatches(size, generator=torch.Generator())


def test_likelihoods_that_are_none():
    with pytest.raises(ValueError, match="unknown likelihood 'softmax'"):
        Problem(model(), "softmax", train=(X, Y))
    with pytest.raises(ValueError, match="weight"):
        Problem(model(), nn.CrossEntropyLoss(weight=torch.ones(2)), train=(X, Y))


def test_a_refused_problem_leaves_the_model():
    net = model().train()
    values = [p.clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="class indices"):
        Problem(net, "categorical", train=Batch(X, Y + 5))
    assert all(m.training for m in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(values, net.parameters(), strict=True))
