"""A network relabelled by itself: its minimum is known, whatever the network is."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import cases
from kobai.curvature import Hessian
from kobai.landscape import evaluate_plane, random_directions, true_minimum
from kobai.landscape.relabel import relabelled
from kobai.models import CNNConfig, MLPConfig, ResNetConfig, build
from kobai.problem import Categorical, Problem
from kobai.results import load, save
from tolerances import assert_close


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def checks(proof):
    return {check.name: check for check in proof.checks}


SMOOTH = ["regression", "binary", "cnn", "resnet", "lstm", "transformer", "smoothed", "norms"]


@pytest.mark.parametrize("name", ["mlp", *SMOOTH])
def test_soft_targets_make_every_network_optimal(name):
    problem = cases.problem(name)
    found = true_minimum(problem, generator=seeded())
    proof = found.proof
    assert proof.holds, [check for check in proof.checks if not check.passed]
    assert proof.gradient_norm <= 1e-13
    assert proof.original_gradient_norm > 1e-4
    assert abs(proof.loss) < 1e-25
    assert proof.curvature_gap < 1e-12
    assert proof.eigenvalue_min >= -1e-6 * proof.eigenvalue_max
    # The floor is what the plain loss has there, and no parameters nearby have less.
    risk = found.problem.objective()
    for seed in range(3):
        shift = torch.randn(len(found.theta), generator=seeded(seed), dtype=torch.float64)
        assert float(risk.value(found.theta + 0.3 * shift)) > 0
    assert torch.equal(problem.objective().theta(), found.theta)


def test_the_hessian_is_positive_semidefinite_by_a_dense_oracle():
    found = true_minimum(cases.problem("mlp"), generator=seeded())
    risk = found.problem.objective()
    dense = torch.func.hessian(cases.dense_loss(risk))(found.theta)
    values = torch.linalg.eigvalsh(dense)
    assert float(values[0]) > -1e-14
    assert found.proof.eigenvalue_max == pytest.approx(float(values[-1]), rel=1e-6)


def test_the_floor_is_the_mean_entropy_of_the_outputs():
    problem = cases.problem("mlp")
    p = torch.softmax(problem.objective().outputs(problem.objective().theta()), 1)
    entropy = float(-(p * p.log()).sum(1).mean())
    found = true_minimum(problem, curvature=False)
    assert found.proof.floor == pytest.approx(entropy, rel=1e-12)
    assert found.proof.status == ""
    assert np.isnan(found.proof.eigenvalue_min)


def test_decisions_as_labels_are_no_minimum_and_the_proof_says_so():
    problem = cases.problem("mlp")
    found = true_minimum(problem, "hard", generator=seeded())
    risk = problem.objective()
    outputs = risk.outputs(found.theta)
    relabelled_by_hand = Problem(
        problem.model, "categorical", train=(risk.batches[0].inputs, outputs.argmax(1))
    ).objective()
    gradient = relabelled_by_hand.grad(found.theta)
    assert found.proof.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)
    assert not found.proof.holds
    assert not checks(found.proof)["gradient"].passed
    assert found.proof.gradient_norm > 1e6 * found.proof.gradient_tolerance
    smallest = float(torch.linalg.eigvalsh(Hessian(relabelled_by_hand).dense())[0])
    assert found.proof.eigenvalue_min == pytest.approx(smallest, rel=1e-2)
    assert smallest < 0
    assert found.problem.objective().metrics()["accuracy"] == 1.0


def test_float32_meets_tolerances_of_its_own_precision():
    problem = cases.problem("mlp")
    model = problem.model.float()
    batch = problem.train.first(99)
    found = true_minimum(
        Problem(model, "categorical", train=(batch.inputs.float(), batch.targets)),
        generator=seeded(),
    )
    assert found.proof.holds, found.proof.checks
    assert found.proof.gradient_norm < 1e-7
    assert found.proof.gradient_tolerance < 1e-3


def test_ignored_positions_stay_ignored():
    problem = cases.problem("transformer")
    batch = problem.train.first(99)
    soft = relabelled(problem, problem.objective().theta()).train.first(99).targets
    hard = relabelled(problem, problem.objective().theta(), "hard").train.first(99).targets
    ignored = batch.targets == -100
    assert bool(ignored.any())
    assert torch.equal(soft.sum(-1) == 0, ignored)
    assert torch.equal(hard == -100, ignored)


class _Items(Dataset):
    """Items with a third part, which only the data set's own collation knows how to leave out."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], self.y[i], "name"


def _leave_names(items):
    return torch.stack([x for x, _, _ in items]), torch.stack([y for _, y, _ in items])


def test_streamed_data_give_the_same_problem():
    problem = cases.problem("mlp")
    batch = problem.train.first(99)
    loader = torch.utils.data.DataLoader(
        _Items(batch.inputs, batch.targets), collate_fn=_leave_names, batch_size=4
    )
    streamed = Problem(problem.model, "categorical", train=loader)
    theta = problem.objective().theta()
    first, second = relabelled(problem, theta), relabelled(streamed, theta)
    moved = theta + 0.1
    for chunk in (None, 4):
        assert_close(
            second.objective(chunk=chunk).grad(moved), first.objective().grad(moved), 1e-13
        )
    picks = list(second.minibatches(4, generator=seeded()))
    assert sum(pick.size for pick in picks) == batch.size


def test_every_split_is_relabelled():
    problem = cases.problem("mlp")
    batch = problem.train.first(99)
    whole = Problem(
        problem.model, "categorical", train=batch, validation=batch.take(slice(0, 4)), test=batch
    )
    made = relabelled(whole, whole.objective().theta())
    assert made.splits == ("train", "validation", "test")
    for split in made.splits:
        assert float(made.objective(split=split).value(whole.objective().theta())) < 1e-28


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="regression has no decisions"):
        true_minimum(cases.problem("regression"), "hard")
    with torch.random.fork_rng():
        noisy = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    batch = cases.problem("mlp").train.first(99)
    with pytest.raises(ValueError, match=r"call .eval\(\)"):
        true_minimum(Problem(noisy, "categorical", train=batch))


def test_the_plane_through_a_true_minimum_has_its_least_value_at_the_centre(tmp_path):
    found = true_minimum(cases.problem("mlp"), generator=seeded(), label="mlp")
    directions = random_directions(found.problem.objective(), generator=seeded(1))
    plane = evaluate_plane(found.problem.objective(), directions, a=7, b=5)
    assert plane.fields["loss"].min() == plane.fields["loss"][3, 2]
    assert 0.0 <= plane.fields["loss"][3, 2] < 1e-28
    assert all(check.passed for check in plane.checks), plane.checks
    save(found.proof, tmp_path, "proof")
    assert load(tmp_path, "proof") == found.proof


@pytest.mark.parametrize(
    "config",
    [MLPConfig(widths=(12, 8)), CNNConfig(channels=(4, 5), head="conv"), ResNetConfig(depth=8)],
    ids=["mlp", "cnn", "resnet"],
)
def test_kobais_own_models(config):
    x = torch.randn(6, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    y = torch.randint(0, 10, (6,), generator=seeded(1))
    model = build(
        config, input_shape=(1, 8, 8), num_outputs=10, generator=seeded(2), dtype=torch.float64
    )
    problem = Problem(model.eval(), Categorical(), train=(x, y))
    found = true_minimum(problem, curvature=config.__class__ is MLPConfig, generator=seeded())
    assert found.proof.holds, found.proof.checks
