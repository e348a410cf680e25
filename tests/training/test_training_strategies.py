"""Auxiliary heads, hints and distillation, greedy pretraining: losses by hand, parts left alone."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kobai import Problem, optim
from kobai.curvature import GGN
from kobai.training import (
    AuxiliaryHeads,
    auxiliary_problem,
    distillation_problem,
    greedy_pretraining,
    hint_problem,
    train,
    train_by_hints,
)


def stack(*sizes: int, seed: int = 0) -> list[nn.Module]:
    """Dense tanh layers in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [
            nn.Sequential(nn.Linear(m, n), nn.Tanh()).double() for m, n in itertools.pairwise(sizes)
        ]


def dense(m: int, n: int, seed: int = 5) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(m, n).double()


@pytest.fixture
def data(generator):
    x = torch.randn(90, 4, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)


def test_auxiliary_loss_is_the_weighted_sum_of_cross_entropies(data):
    model = AuxiliaryHeads(stack(4, 6, 5), dense(5, 3), {0: dense(6, 3, 7)})
    problem = auxiliary_problem(model, data, weights=(1.0, 0.3))
    out = model(data[0])
    by_hand = F.cross_entropy(out[:, 0], data[1]) + 0.3 * F.cross_entropy(out[:, 1], data[1])
    objective = problem.objective()
    torch.testing.assert_close(objective.value(objective.theta()), by_hand.detach())
    torch.testing.assert_close(model.main()(data[0]), out[:, 0])


def test_a_head_of_weight_zero_changes_nothing_and_a_head_reaches_the_first_layer(data):
    def gradient(weight: float) -> torch.Tensor:
        model = AuxiliaryHeads(stack(4, 6, 5), dense(5, 3), {0: dense(6, 3, 7)})
        problem = auxiliary_problem(model, data, weights=(1.0, weight))
        objective = problem.objective()
        return objective.space.unflatten(objective.grad(objective.theta()))["parts.0.0.weight"]

    plain = nn.Sequential(*stack(4, 6, 5), dense(5, 3))
    problem = Problem(plain, "categorical", train=data)
    alone = problem.space.unflatten(problem.objective().grad(problem.space.theta()))["0.0.weight"]
    torch.testing.assert_close(gradient(0.0), alone)
    assert float((gradient(1.0) - alone).norm()) > 0.1 * float(alone.norm())


def test_auxiliary_problems_have_curvature_and_take_kfac(data, generator):
    model = AuxiliaryHeads(stack(4, 6, 5), dense(5, 3), {0: dense(6, 3, 7)})
    problem = auxiliary_problem(model, data, weights=(1.0, 0.3))
    matrix = GGN(problem.objective()).dense()
    assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-10
    history = train(problem, optim.build("kfac", model, problem.likelihood), epochs=2,
                    batch_size=30, generator=generator)  # fmt: skip
    assert history.train_loss[-1] < history.train_loss[0]


def test_auxiliary_refusals(data):
    model = AuxiliaryHeads(stack(4, 6), dense(6, 3), {0: dense(6, 3)})
    with pytest.raises(ValueError, match="got 1 weights"):
        auxiliary_problem(model, data, weights=(1.0,))
    with pytest.raises(ValueError, match="negative"):
        auxiliary_problem(model, data, weights=(1.0, -0.1))
    with pytest.raises(ValueError, match="heads sit on parts"):
        AuxiliaryHeads(stack(4, 6), dense(6, 3), {1: dense(6, 3)})


def test_distillation_loss_by_hand(data):
    student, teacher = nn.Sequential(*stack(4, 3)), nn.Sequential(*stack(4, 3, seed=9))
    problem = distillation_problem(student, teacher, data, temperature=2.5, weight=0.7)
    mine, theirs = student(data[0]), teacher(data[0])
    soft = -((theirs / 2.5).softmax(1) * (mine / 2.5).log_softmax(1)).sum(1).mean()
    by_hand = F.cross_entropy(mine, data[1]) + 0.7 * soft
    objective = problem.objective()
    torch.testing.assert_close(objective.value(objective.theta()), by_hand.detach())


def test_hint_loss_is_half_the_squared_distance(data):
    guided, teacher = nn.Sequential(*stack(4, 2)), nn.Sequential(*stack(4, 6, seed=9))
    regressor = dense(2, 6)
    problem = hint_problem(guided, regressor, teacher, data[0])
    by_hand = 0.5 * (teacher(data[0]) - regressor(guided(data[0]))).square().sum(1).mean()
    objective = problem.objective()
    torch.testing.assert_close(objective.value(objective.theta()), by_hand.detach())


def test_hints_move_the_student_and_leave_the_teacher_alone(data, generator):
    student = nn.Sequential(*stack(4, 5, 5, 5), dense(5, 3))
    teacher = nn.Sequential(*stack(4, 12, seed=3), dense(12, 3))
    before = [p.detach().clone() for p in teacher.parameters()]
    hints, whole = train_by_hints(student, teacher, dense(5, 12), data, sgd, guided=2, hint=1,
                                  epochs=(6, 6), batch_size=30, generator=generator)  # fmt: skip
    assert hints.train_loss[-1] < hints.train_loss[0]
    assert whole.train_loss[-1] < whole.train_loss[0]
    for old, new in zip(before, teacher.parameters(), strict=True):
        assert torch.equal(old, new.detach())
    with pytest.raises(ValueError, match="guided lies in 1 to 4"):
        train_by_hints(student, teacher, dense(5, 12), data, sgd, guided=5, hint=1, epochs=(1, 1),
                       generator=generator)  # fmt: skip


def test_greedy_stages_freeze_what_is_below_and_thaw_it_in_the_end(data, generator):
    parts = stack(4, 6, 6, 6)
    heads = [dense(6, 3, seed) for seed in range(3)]
    first: list[torch.Tensor] = []

    def make(model: nn.Module) -> torch.optim.Optimizer:
        first.append(parts[0][0].weight.detach().clone())  # pyright: ignore
        return sgd(model)

    records = greedy_pretraining(parts, heads, "categorical", data, make, epochs=4, batch_size=30,
                                 generator=generator)  # fmt: skip
    assert [r.label for r in records] == ["layer 1", "layer 2", "layer 3"]
    assert not torch.equal(first[0], first[1])
    assert torch.equal(first[1], first[2])
    assert torch.equal(first[2], parts[0][0].weight.detach())  # pyright: ignore
    assert all(p.requires_grad for part in parts for p in part.parameters())
    assert all(r.train_loss[-1] < r.train_loss[0] for r in records)


def test_greedy_stages_may_train_on_and_want_a_head_each(data, generator):
    parts = stack(4, 6, 6)
    before = parts[0][0].weight.detach().clone()  # pyright: ignore
    greedy_pretraining(parts, [dense(6, 3), dense(6, 3)], "categorical", data, sgd, freeze=False,
                       epochs=1, batch_size=30, generator=generator)  # fmt: skip
    assert not torch.equal(before, parts[0][0].weight.detach())  # pyright: ignore
    with pytest.raises(ValueError, match="2 parts and 1 heads"):
        greedy_pretraining(parts, [dense(6, 3)], "categorical", data, sgd, generator=generator)
