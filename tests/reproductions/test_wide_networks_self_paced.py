"""Self-paced augmentation through the training loop: theory's row 5."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kobai import Problem, data
from kobai.training import Rotate, SelfPacedAugmentation, train

AUGMENTATION = Rotate(degrees=15.0)
BATCH, EXAMPLES = 50, 200


def _train(threshold, *, augment=None, epochs=3):
    """Parameters after training on digits, and the augmented share epoch by epoch."""
    x, labels = data.load("digits", limit=EXAMPLES).train
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    problem = Problem(model, "categorical", train=(x.view(-1, 1, 8, 8), labels))
    paced = SelfPacedAugmentation(AUGMENTATION, model, threshold=threshold)
    train(
        problem,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        epochs=epochs,
        batch_size=BATCH,
        generator=torch.Generator().manual_seed(0),
        augment=paced if augment is None else augment,
    )
    shares = np.array(paced.selected).reshape(-1, EXAMPLES // BATCH).mean(1)
    return problem.space.theta(), shares


@pytest.mark.parametrize("always", [False, True])
def test_the_ends_of_the_threshold_are_bit_exact(always):
    def plain(x, y, *, generator):
        return AUGMENTATION(x, y, generator=generator) if always else (x, y)

    paced, shares = _train(-1.0 if always else math.inf)
    assert torch.equal(paced, _train(0.0, augment=plain)[0])
    assert set(shares) == {float(always)}


def test_the_augmented_share_falls_over_the_epochs():
    _, shares = _train(0.1, epochs=40)
    chosen = shares[np.array([1, 2, 5, 10, 20, 40]) - 1]
    assert chosen[0] > 0.95
    assert chosen[-1] < 0.1
    # A trend: never more than before, but for the examples of one batch in four.
    assert (np.diff(chosen) < 0.05).all()
