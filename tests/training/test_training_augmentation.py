"""Augmentation draws from its generator alone; self-paced augmentation between never and always."""

import math

import pytest
import torch
from torch import nn

from kobai import seeds
from kobai.training import (
    Compose,
    Cutout,
    Flip,
    Mixup,
    Rotate,
    SelfPacedAugmentation,
    Shift,
)

ALL = {
    "shift": Shift(pixels=2),
    "rotate": Rotate(degrees=20.0),
    "flip": Flip(),
    "cutout": Cutout(size=3),
    "mixup": Mixup(classes=4),
    "compose": Compose((Shift(pixels=1), Flip(), Mixup(classes=4))),
}


def pictures(count=40, *, channels=2, side=7, dtype=torch.float64):
    g = seeds.generator(3, "pictures")
    x = torch.randn(count, channels, side, side, generator=g, dtype=dtype)
    return x, torch.randint(4, (count,), generator=g)


def network(*, norm=False, dropout=False):
    """A small classifier, its parameters drawn from a generator."""
    g = seeds.generator(1, "network")
    with torch.random.fork_rng():
        parts = [nn.Flatten(), nn.Linear(98, 8)]
        parts += [nn.BatchNorm1d(8)] if norm else []
        parts += [nn.Dropout(0.5)] if dropout else []
        model = nn.Sequential(*parts, nn.ReLU(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.4, generator=g)
    return model


@pytest.mark.parametrize("name", ALL)
def test_same_generator_same_pictures_and_nothing_is_changed_in_place(name):
    x, y = pictures()
    before = x.clone()
    one = ALL[name](x, y, generator=seeds.generator(0, "a"))
    two = ALL[name](x, y, generator=seeds.generator(0, "a"))
    other = ALL[name](x, y, generator=seeds.generator(1, "a"))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])
    assert torch.equal(x, before)
    assert one[0].shape == x.shape
    assert one[0].dtype == x.dtype


def test_shifts_are_shifts():
    x, y = pictures(200, channels=1)
    moved, _ = Shift(pixels=2)(x, y, generator=seeds.generator(0, "a"))
    padded = nn.functional.pad(x, (2, 2, 2, 2))
    seen = set()
    for i in range(len(x)):
        matches = [
            (a, b)
            for a in range(5)
            for b in range(5)
            if torch.equal(moved[i], padded[i, :, a : a + 7, b : b + 7])
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 25


def test_a_quarter_turn_is_numpys():
    x, y = pictures(3)
    turn = Rotate(degrees=90.0)
    # The generator's first numbers decide the angles: a stub that always draws the largest.
    found = []
    for k in range(200):
        g = seeds.generator(k, "angle")
        angle = 2 * torch.rand(3, generator=seeds.generator(k, "angle"), dtype=torch.float64) - 1
        moved, _ = turn(x, y, generator=g)
        found += [(float(a), m, i) for i, (a, m) in enumerate(zip(angle, moved, strict=True))]
    angle, moved, i = max(found, key=lambda item: item[0])
    assert angle > 0.99
    exact = torch.rot90(x[i], 1, (1, 2))
    other = torch.rot90(x[i], -1, (1, 2))
    distance = min((moved - exact).norm(), (moved - other).norm()) / exact.norm()
    assert distance < 0.1


def test_rotation_of_unequal_sides_keeps_lengths():
    x = torch.zeros(1, 1, 9, 21, dtype=torch.float64)
    x[0, 0, 4, 7:14] = 1.0  # a bar of 7 pixels through the centre
    found = None
    for k in range(300):
        a = 2 * torch.rand(1, generator=seeds.generator(k, "angle"), dtype=torch.float64) - 1
        if float(a.abs()) > 0.99:
            found = Rotate(degrees=90.0)(x, torch.zeros(1), generator=seeds.generator(k, "angle"))[
                0
            ][0, 0]
            break
    assert found is not None
    assert float(found[:, 10].sum()) == pytest.approx(7.0, abs=0.5)


def test_cutout_removes_at_most_its_square_and_flip_mirrors():
    x, y = pictures(300)
    x = x.abs() + 1
    cut, _ = Cutout(size=3)(x, y, generator=seeds.generator(0, "a"))
    holes = (cut == 0).sum((1, 2, 3)) // 2
    assert int(holes.max()) == 9
    assert int(holes.min()) == 4  # a corner leaves two by two
    flipped, _ = Flip(probability=1.0)(x, y, generator=seeds.generator(0, "a"))
    assert torch.equal(flipped, x.flip(-1))


def test_mixup_mixes_targets_as_it_mixes_pictures():
    x, y = pictures(500)
    one_hot = torch.nn.functional.one_hot(y, 4).double()
    mixed, p = Mixup(classes=4, alpha=1.0)(x, y, generator=seeds.generator(0, "a"))
    assert torch.allclose(p.sum(1), torch.ones(500))
    share = p[torch.arange(500), y]
    alone = share > 1 - 1e-3  # partner of the same class, or none
    # With a partner j of another class, picture = s x_i + (1 − s) x_j for one j.
    i = int((~alone).nonzero()[0])
    s = share[i].double()
    partner = (mixed[i] - s * x[i]) / (1 - s)
    distances = (x - partner).flatten(1).norm(dim=1)
    j = int(distances.argmin())
    assert float(distances[j]) < 1e-3
    assert torch.allclose(p[i].double(), s * one_hot[i] + (1 - s) * one_hot[j], atol=1e-6)
    # Beta(1, 1) is uniform: mean 1/2, variance 1/12, at 5 standard errors.
    others = share[~alone]
    assert float(others.mean()) == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / len(others)))


def run(threshold, *, augmentation=ALL["compose"], norm=True, steps=6, always=False):
    """Training with self-paced augmentation, or by hand without it and with it always."""
    model = network(norm=norm)
    x, y = pictures()
    g = seeds.generator(0, "augment")
    paced = SelfPacedAugmentation(augmentation, model, threshold=threshold or 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(steps):
        if threshold is None:
            a, b = augmentation(x, y, generator=g) if always else (x, augmentation.targets(y))
        else:
            a, b = paced(x, y, generator=g)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b.double() if b.is_floating_point() else b).backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()), paced.selected


@pytest.mark.parametrize("name", ["compose", "rotate"])
def test_infinite_threshold_is_never_and_negative_is_always_to_the_bit(name):
    augmentation = ALL[name]
    never, _ = run(None, augmentation=augmentation)
    always, _ = run(None, augmentation=augmentation, always=True)
    low, shares = run(math.inf, augmentation=augmentation)
    high, full = run(-1.0, augmentation=augmentation)
    assert torch.equal(low, never)
    assert torch.equal(high, always)
    assert not torch.equal(low, high)
    assert set(shares) == {0.0}
    assert set(full) == {1.0}


def test_the_selected_are_those_above_the_threshold():
    model = network()
    x, y = pictures()
    losses = nn.functional.cross_entropy(model(x), y, reduction="none").detach()
    tau = float(losses.median())
    paced = SelfPacedAugmentation(Cutout(size=3), model, threshold=tau)
    moved, targets = paced(x, y, generator=seeds.generator(0, "a"))
    changed = (moved != x).flatten(1).any(1)
    assert torch.equal(changed, losses > tau)
    assert torch.equal(targets, y)
    assert paced.selected == [float((losses > tau).double().mean())]


def test_looking_at_losses_leaves_running_statistics_and_modes_alone():
    model = network(norm=True, dropout=True)
    model.train()
    model[3].eval()
    x, y = pictures()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    paced = SelfPacedAugmentation(Shift(pixels=1), model, threshold=0.5)
    paced(x, y, generator=seeds.generator(0, "a"))
    assert torch.equal(state, torch.get_rng_state())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model[2].training
    assert not model[3].training
    assert all(p.grad is None for p in model.parameters())


def test_the_share_falls_as_training_fits():
    _, shares = run(0.3, augmentation=Cutout(size=2), norm=False, steps=150)
    assert shares[0] > 0.8
    assert shares[-1] < 0.5 * shares[0]


def test_a_loss_that_is_not_finite_counts_as_hard():
    model = network()
    x, y = pictures()
    x[0] = torch.nan
    mask = SelfPacedAugmentation(Shift(), model, threshold=1e9).mask(x, y)
    assert mask.tolist() == [True] + [False] * 39


@pytest.mark.parametrize(
    "make",
    [
        lambda: Shift(pixels=0),
        lambda: Rotate(degrees=0.0),
        lambda: Flip(probability=1.5),
        lambda: Cutout(size=0),
        lambda: Mixup(classes=1),
        lambda: Mixup(classes=3, alpha=0.0),
        lambda: SelfPacedAugmentation(Shift(), nn.Flatten(), threshold=math.nan),
    ],
)
def test_wrong_use_is_refused(make):
    with pytest.raises(ValueError):
        make()
