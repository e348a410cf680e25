"""Problems from every kind of data: the same examples, in the same order, whatever holds them."""

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import cases
from kobai.problem import Batch, Categorical, Examples, Problem
from kobai.problem import problem as problem_module
from kobai.problem.examples import StreamedExamples, TensorExamples
from tolerances import assert_close

N = 11


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(inputs: int = 3, outputs: int = 2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


X = torch.randn(N, 3, generator=seeded(1), dtype=torch.float64)
Y = torch.randint(0, 2, (N,), generator=seeded(2))


class Items(Dataset):
    """A map-style data set that counts how often it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, i):
        self.reads += 1
        return X[i], int(Y[i])


def problem(train, **options) -> Problem:
    return Problem(model(), "categorical", train=train, **options)


def all_of(examples: Examples) -> Batch:
    batches = list(examples.batches(4))
    return Batch(
        torch.cat([b.inputs for b in batches]),  # type: ignore[arg-type]
        torch.cat([b.targets for b in batches]),
    )


def places_of(inputs: torch.Tensor) -> torch.Tensor:
    """Where in X each row stands."""
    return (inputs.unsqueeze(1) == X).all(2).long().argmax(1)


SOURCES = {
    "tensors": lambda: (X, Y),
    "list": lambda: [X, Y],
    "batch": lambda: Batch(X, Y),
    "tensor-dataset": lambda: TensorDataset(X, Y),
    "dataset": Items,
    "subset": lambda: Subset(Items(), range(N)),
    "loader": lambda: DataLoader(Items(), batch_size=4),
    "shuffling-loader": lambda: DataLoader(Items(), batch_size=4, shuffle=True),
    "dropping-loader": lambda: DataLoader(Items(), batch_size=4, shuffle=True, drop_last=True),
    "tensor-loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    "seeded-loader": lambda: DataLoader(Items(), shuffle=True, generator=seeded()),
    "sampled-loader": lambda: DataLoader(Items(), sampler=RandomSampler(range(N)), batch_size=2),
    "batch-sampler": lambda: DataLoader(
        Items(), batch_sampler=BatchSampler(SequentialSampler(range(N)), 3, False)
    ),
    "collating-loader": lambda: DataLoader(
        [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)],  # type: ignore[arg-type]
        collate_fn=lambda items: (
            torch.stack([i["x"] for i in items]),
            torch.stack([i["y"] for i in items]),
        ),
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_the_same_examples_in_order(name):
    """Shuffling belongs to training: a full-batch quantity must not depend on it."""
    subject = problem(SOURCES[name]())
    whole = all_of(subject.train)
    assert torch.equal(whole.inputs, X)
    assert torch.equal(whole.targets, Y)
    theta = subject.space.theta()
    expected = problem((X, Y)).objective()
    for chunk in (None, 3):
        objective = subject.objective(chunk=chunk)
        assert objective.size == subject.train.size == N
        assert_close(objective.value(theta), expected.value(theta), 1e-14)
        assert_close(objective.grad(theta), expected.grad(theta), 1e-14)
        assert_close(objective.outputs(theta), expected.outputs(theta), 1e-14)


@pytest.mark.parametrize("name", SOURCES)
def test_an_epoch_is_every_example_once_as_the_generator_says(name):
    subject = problem(SOURCES[name]())
    epochs = []
    for seed in (0, 0, 1):
        batches = list(subject.minibatches(4, generator=seeded(seed)))
        assert [b.size for b in batches] == [4, 4, 3]
        epochs.append(torch.cat([b.inputs for b in batches]))
        order = places_of(epochs[-1])
        assert torch.equal(order.sort().values, torch.arange(N))
        assert torch.equal(torch.cat([b.targets for b in batches]), Y[order])
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])


@pytest.mark.parametrize("name", ["tensors", "dataset"])
def test_the_order_does_not_depend_on_what_holds_the_data(name):
    (first, *_), (second, *_) = (
        list(problem(SOURCES[s]()).minibatches(4, generator=seeded())) for s in (name, "tensors")
    )
    assert torch.equal(first.inputs, second.inputs)


def test_tensors_are_not_copied():
    (batch,) = problem((X, Y)).objective().batches
    assert batch.inputs.data_ptr() == X.data_ptr()
    assert isinstance(problem(SOURCES["tensor-loader"]()).train, TensorExamples)


def test_a_data_set_is_read_as_needed():
    items = Items()
    subject = problem(items)
    assert items.reads == 2
    objective = subject.objective(chunk=3)
    assert len(objective.batches) == 4
    before = items.reads  # the checker of annotations has had a look
    objective.value(objective.theta())
    assert items.reads == before + 2 * N  # once for the normaliser, once for the value
    objective.value(objective.theta())
    assert items.reads == before + 3 * N


def test_a_subset_sampler_chooses_its_examples():
    """The usual way to split a data set with loaders; the other examples must stay out."""
    for dataset in (Items(), TensorDataset(X, Y)):
        loader = DataLoader(dataset, sampler=SubsetRandomSampler([7, 2, 5]), batch_size=2)
        whole = all_of(problem(loader).train)
        assert torch.equal(whole.inputs, X[[2, 5, 7]])
        assert torch.equal(whole.targets, Y[[2, 5, 7]])


def test_several_inputs():
    keywords = cases.problem("keywords")
    (batch,) = keywords.objective().batches
    a, b, y = batch.inputs["a"], batch.inputs["b"], batch.targets

    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = keywords.model

        def forward(self, a, b):
            return self.inner(a=a, b=b)

    expected = keywords.objective()
    expected = expected.value(expected.theta())
    items = [((a[i], b[i]), y[i]) for i in range(len(y))]
    for train in (((a, b), y), TensorDataset(a, b, y), DataLoader(items)):  # type: ignore[arg-type]
        objective = Problem(Pairs(), "categorical", train=train).objective()
        assert_close(objective.value(objective.theta()), expected, 1e-14)


def test_splits():
    subject = problem((X, Y), validation=(X[:4], Y[:4]), test=TensorDataset(X[4:], Y[4:]))
    assert subject.splits == ("train", "validation", "test")
    assert [subject.examples(s).size for s in subject.splits] == [N, 4, N - 4]
    assert subject.objective(split="validation").size == 4
    assert problem((X, Y)).splits == ("train",)
    with pytest.raises(ValueError, match=r"has the splits \('train',\), got split='test'"):
        problem((X, Y)).objective(split="test")


@pytest.mark.parametrize("name", ["tensors", "dataset"])
@pytest.mark.parametrize("fraction", [0.3, 0.5])
def test_a_fraction_is_drawn_apart_and_again_the_same(name, fraction):
    parts = []
    for seed in (0, 0, 1):
        subject = problem(SOURCES[name](), validation=fraction, generator=seeded(seed))
        assert subject.splits == ("train", "validation")
        kept, drawn = all_of(subject.train), all_of(subject.validation)
        assert drawn.size == round(fraction * N)
        both = torch.cat([kept.inputs, drawn.inputs])
        assert torch.equal(both.sort(0).values, X.sort(0).values)
        places = [places_of(batch.inputs) for batch in (kept, drawn)]
        for batch, place in zip((kept, drawn), places, strict=True):
            assert torch.equal(place, place.sort().values)
            assert torch.equal(batch.targets, Y[place])
        assert not set(places[0].tolist()) & set(places[1].tolist())
        parts.append(places[1])
    assert torch.equal(parts[0], parts[1])
    assert not torch.equal(parts[0], parts[2])


@pytest.mark.parametrize("name", SOURCES)
def test_making_a_problem_leaves_the_model_and_the_random_state(name):
    net = nn.Sequential(model(), nn.Dropout(0.5))
    net.train()
    net[0].eval()
    state = torch.get_rng_state()
    subject = Problem(net, "categorical", train=SOURCES[name]())
    subject.objective()
    list(subject.objective(chunk=2).batches)
    list(subject.minibatches(4, generator=seeded()))
    assert [m.training for m in net.modules()] == [True, False, False, False, False, True]
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_in_training_mode_may_be_declared_on_one_example():
    """The model is tried in evaluation mode: batch statistics of one example do not exist."""
    net = nn.Sequential(model(3, 4), nn.BatchNorm1d(4).double())
    subject = Problem(net, "gaussian", train=(X[:1], torch.zeros(1, 4, dtype=torch.float64)))
    assert subject.objective().size == 1
    assert net.training
    assert int(net[1].num_batches_tracked) == 0


class Noting(nn.Module):
    """Counts its calls in a buffer and draws random numbers, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.inner = model()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        torch.rand(())
        return self.inner(x)


def test_making_a_problem_leaves_buffers():
    noting = Noting()
    Problem(noting, "categorical", train=(X, Y)).objective()
    assert float(noting.calls) == 0.0


class Augmented(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, i):
        # The first ones are left: the checker of annotations reads a batch of its own.
        noise = torch.randn(3, dtype=torch.float64) if i > 3 else 0.0
        return X[i] + noise, Y[i]


def test_random_data_serve_training_but_are_no_function():
    state = torch.get_rng_state()
    subject = problem(Augmented())
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        assert sum(b.size for b in subject.minibatches(4, generator=seeded())) == N
    objective = subject.objective(chunk=4)
    with pytest.raises(ValueError, match="draws random numbers as it is read"):
        objective.value(objective.theta())
    assert torch.equal(torch.get_rng_state(), state)


def test_torch_losses_keep_their_value_over_a_whole_split():
    x = torch.randn(6, 3, generator=seeded(), dtype=torch.float64)
    y = torch.randn(6, 2, generator=seeded(1), dtype=torch.float64)
    for loss, targets in (
        (nn.MSELoss(), y),
        (nn.BCEWithLogitsLoss(), y.sigmoid()),
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.tensor([0, 1, -100, 1, 0, -100])),
        (nn.CrossEntropyLoss(), y.softmax(1)),
    ):
        objective = Problem(model(), loss, train=(x, targets)).objective(chunk=4)
        expected = loss(objective.model(x), targets).detach()
        assert_close(objective.value(objective.theta()), expected, 1e-13)
        assert_close(objective(), expected, 1e-13)


def test_an_objective_of_one_batch():
    subject = problem((X, Y))
    objective = subject.objective(Batch(X[:3], Y[:3]))
    assert (objective.size, objective.weight) == (3, 3.0)
    expected = nn.functional.cross_entropy(subject.model(X[:3]), Y[:3]).detach()
    assert_close(objective.value(objective.theta()), expected, 1e-14)


@pytest.mark.parametrize("training", [True, False])
def test_memory_bounds_the_chunks_whatever_the_mode(monkeypatch, training):
    """Two layers of 50 keep 2 · 50 numbers of 8 bytes an example: tanh's outputs, each once."""
    with torch.random.fork_rng():
        net = nn.Sequential(
            nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 2)
        ).double()
    net.train(training)
    data = (torch.zeros(100, 3, dtype=torch.float64), torch.zeros(100, 2, dtype=torch.float64))
    bytes_an_example = 2 * 50 * 8

    def sizes(bound):
        monkeypatch.setattr(problem_module, "MEMORY_BOUND", bound)
        return [b.size for b in Problem(net, "gaussian", train=data).objective().batches]

    assert sizes(2**30) == [100]
    assert sizes(bytes_an_example * 40) == [40, 40, 20]
    assert sizes(1) == [1] * 100


def test_memory_of_attention_is_that_of_its_exact_kernel(monkeypatch):
    """The fused kernel keeps no attention matrix; curvature runs through the one that does."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            x = (self.scale * x).unsqueeze(1)
            return nn.functional.scaled_dot_product_attention(x, x, x).mean((1, 2))

    data = (torch.ones(8, 64, 2), torch.zeros(8, 2))
    monkeypatch.setattr(problem_module, "MEMORY_BOUND", 64 * 64 * 4 * 2)
    objective = Problem(Attention(), "gaussian", train=data).objective()
    assert max(batch.size for batch in objective.batches) <= 2


def test_moving_a_problem_keeps_its_parameters():
    subject = problem((X, Y), validation=0.3, generator=seeded(), test=Items())
    held = list(subject.model.parameters())
    assert subject.to("cpu") is subject
    assert all(a is b for a, b in zip(held, subject.model.parameters(), strict=True))
    assert isinstance(subject.test, StreamedExamples)


def test_examples_and_likelihoods_can_be_shared():
    first = problem((X, Y))
    likelihood = Categorical(scale=2.0)
    second = Problem(model(), likelihood, train=first.train)
    assert second.train is first.train
    theta = first.space.theta()
    assert_close(second.objective().value(theta), 2 * first.objective().value(theta), 1e-14)
