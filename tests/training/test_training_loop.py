import math

import numpy as np
import pytest
import torch
from torch import nn

from kobai import Problem
from kobai.problem import evaluation_mode
from kobai.results import History
from kobai.training import Constant, LinearDecay, TrainingOptions, train


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _sgd(problem, lr=0.1, **options):
    return torch.optim.SGD(problem.model.parameters(), lr=lr, **options)


def _by_hand(problem, optimizer, *, steps, batch_size, generator, change=lambda k: None):
    """The loop a user would write."""
    problem.model.train()
    loss_function, losses = nn.CrossEntropyLoss(), []
    k = 0
    while k < steps:
        for batch in problem.minibatches(batch_size, generator=generator):
            optimizer.zero_grad()
            loss = loss_function(problem.model(batch.inputs), batch.targets)
            loss.backward()
            change(k)
            optimizer.step()
            losses.append(loss.item())
            k += 1
            if k == steps:
                break
    return losses


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adagrad(p, lr=0.05),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01),
    ],
)
def test_it_is_the_loop_one_would_write(make_problem, make):
    ours, theirs = make_problem(), make_problem()
    history = train(
        ours, make(ours.model.parameters()), generator=_generator(), steps=11, batch_size=16
    )
    losses = _by_hand(
        theirs, make(theirs.model.parameters()), steps=11, batch_size=16, generator=_generator()
    )
    assert torch.allclose(ours.space.theta(), theirs.space.theta(), rtol=1e-12, atol=1e-14)
    assert history.step_loss == pytest.approx(losses, rel=1e-12)


def test_closure_style_optimizers_work(make_problem):
    problem = make_problem()
    optimizer = torch.optim.LBFGS(problem.model.parameters(), line_search_fn="strong_wolfe")
    history = train(problem, optimizer, generator=_generator(), steps=3, batch_size=50)
    assert history.status == "finished"
    assert history.train_loss[-1] < 0.2 * history.train_loss[0]
    # The whole data set is one batch, so .grad is the full gradient at LBFGS's last evaluation.
    assert np.isfinite(history.gradient_norm[1:]).all()


def test_the_record_says_what_was_measured(make_problem):
    problem = make_problem()
    before = problem.objective().metrics()
    history = train(
        problem,
        _sgd(problem),
        generator=_generator(),
        epochs=3,
        batch_size=16,
        label="run",
        name="sgd",
        seed=7,
    )
    assert isinstance(history, History)
    assert (history.label, history.optimizer, history.seed) == ("run", "sgd", 7)
    assert (history.status, history.note) == ("finished", "")
    assert history.step.tolist() == [0, 4, 8, 12]
    assert history.epoch.tolist() == [0, 1, 2, 3]
    assert len(history.step_loss) == 12
    assert history.train_loss[0] == before["loss"]
    for split in ("train", "validation", "test"):
        after = problem.objective(split=split).metrics()
        assert getattr(history, f"{split}_loss")[-1] == after["loss"]
        assert getattr(history, f"{split}_accuracy")[-1] == after["accuracy"]
    assert (np.diff(history.seconds) > 0).all()
    assert history.seconds[0] == 0.0
    assert history.learning_rate == pytest.approx([0.1] * 4)


def test_absent_splits_and_regression_leave_nan(generator):
    with torch.random.fork_rng():
        model = nn.Linear(3, 2).double()
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    problem = Problem(model, "gaussian", train=(x, x[:, :2]))
    history = train(problem, _sgd(problem), generator=_generator(), epochs=2, batch_size=4)
    assert np.isnan(history.train_accuracy).all()
    assert np.isnan(history.validation_loss).all()
    assert np.isnan(history.test_loss).all()
    assert np.isfinite(history.train_loss).all()


def test_evaluations_come_at_their_interval_and_at_the_end(make_problem):
    def steps(**options):
        problem = make_problem(examples=40)
        return train(
            problem, _sgd(problem), generator=_generator(), batch_size=4, **options
        ).step.tolist()

    assert steps(epochs=1, evaluate_every=0.3) == [0, 3, 6, 9, 10]
    assert steps(epochs=3, evaluate_every=2) == [0, 20, 30]
    assert steps(steps=4, evaluate_every=0.01) == [0, 1, 2, 3, 4]
    assert steps(epochs=0.5, evaluate_every=0.1) == [0, 1, 2, 3, 4, 5]


def test_evaluation_does_not_change_the_run(make_problem):
    thetas = []
    for every in (0.1, 10.0):
        problem = make_problem(nn.BatchNorm1d(8), nn.ReLU())
        train(
            problem,
            _sgd(problem),
            generator=_generator(),
            epochs=2,
            batch_size=16,
            evaluate_every=every,
        )
        thetas.append(problem.space.theta())
    assert torch.equal(*thetas)


def test_a_fixed_evenly_spaced_subset_can_stand_for_the_training_data(make_problem):
    problem = make_problem(examples=50)
    history = train(
        problem,
        _sgd(problem),
        generator=_generator(),
        epochs=1,
        batch_size=16,
        evaluate_train_limit=10,
    )
    part = problem.train.all.take(torch.arange(0, 50, 5))
    assert history.train_loss[-1] == pytest.approx(problem.objective(part).metrics()["loss"])
    assert "10 of 50" in history.note


def test_streamed_data_train_alike(make_problem):
    class Items(torch.utils.data.Dataset):
        def __init__(self, batch):
            self.batch = batch

        def __len__(self):
            return self.batch.size

        def __getitem__(self, i):
            return self.batch.inputs[i], self.batch.targets[i]

    held, other = make_problem(), make_problem()
    streamed = Problem(other.model, "categorical", train=Items(other.train.all))
    options = {"epochs": 2, "batch_size": 16, "evaluate_train_limit": 20}
    one = train(held, _sgd(held), generator=_generator(), **options)
    two = train(streamed, _sgd(streamed), generator=_generator(), **options)
    assert torch.equal(held.space.theta(), streamed.space.theta())
    assert one.train_loss == pytest.approx(two.train_loss)


def test_schedules_set_the_rate_of_every_group_and_give_it_back(make_problem):
    ours, theirs = make_problem(), make_problem()

    def optimizer(problem):
        first, last = problem.model[0], problem.model[-1]
        return torch.optim.SGD(
            [{"params": first.parameters(), "lr": 0.2}, {"params": last.parameters()}], lr=0.05
        )

    schedule = LinearDecay(until=6, final_fraction=0.1, warmup=2)
    mine, hand = optimizer(ours), optimizer(theirs)
    history = train(
        ours, mine, generator=_generator(), steps=10, batch_size=16, schedule=schedule,
        evaluate_every=0.1,
    )  # fmt: skip

    def change(k):
        for group, lr in zip(hand.param_groups, (0.2, 0.05), strict=True):
            group["lr"] = lr * schedule.factor(k, total=10)

    _by_hand(theirs, hand, steps=10, batch_size=16, generator=_generator(), change=change)
    assert torch.allclose(ours.space.theta(), theirs.space.theta(), rtol=1e-12, atol=1e-14)
    expected = [0.2 * schedule.factor(max(k - 1, 0), total=10) for k in range(11)]
    assert history.learning_rate == pytest.approx(expected)
    assert [group["lr"] for group in mine.param_groups] == [0.2, 0.05]


def test_a_rate_that_is_a_tensor_is_scheduled_in_place(make_problem):
    ours, theirs = make_problem(), make_problem()
    rate = torch.tensor(0.1, dtype=torch.float64)
    tensor = torch.optim.SGD(ours.model.parameters(), lr=rate, foreach=False)
    options = {"steps": 6, "batch_size": 16, "schedule": LinearDecay(final_fraction=0.5)}
    train(ours, tensor, generator=_generator(), **options)
    train(theirs, _sgd(theirs), generator=_generator(), **options)
    assert torch.allclose(ours.space.theta(), theirs.space.theta(), rtol=1e-12, atol=1e-14)
    assert tensor.param_groups[0]["lr"] is rate
    assert float(rate) == 0.1


@pytest.mark.parametrize(("norm", "value"), [(0.05, None), (None, 0.01), (0.03, 0.02)])
def test_clipping_equals_torch(make_problem, norm, value):
    ours, theirs = make_problem(), make_problem()
    history = train(
        ours,
        _sgd(ours),
        generator=_generator(),
        steps=8,
        batch_size=16,
        clip_norm=norm,
        clip_value=value,
        evaluate_every=0.1,
    )
    norms = []

    def change(k):
        parameters = list(theirs.model.parameters())
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))
        if value is not None:
            nn.utils.clip_grad_value_(parameters, value)
        if norm is not None:
            nn.utils.clip_grad_norm_(parameters, norm)

    _by_hand(theirs, _sgd(theirs), steps=8, batch_size=16, generator=_generator(), change=change)
    assert torch.allclose(ours.space.theta(), theirs.space.theta(), rtol=1e-12, atol=1e-14)
    assert history.gradient_norm[1:] == pytest.approx(norms, rel=1e-12)


def test_the_gradient_norm_is_the_same_with_and_without_clipping(make_problem):
    norms = []
    for bound in (None, 1e9):
        problem = make_problem()
        history = train(
            problem, _sgd(problem), generator=_generator(), steps=4, batch_size=16, clip_norm=bound
        )
        norms.append(history.gradient_norm)
    assert math.isnan(norms[0][0])
    assert norms[0][1:] == pytest.approx(norms[1][1:], rel=1e-14)


def test_modes_gradients_and_random_state_are_left_alone(make_problem):
    problem = make_problem(nn.BatchNorm1d(8), nn.Sequential(nn.Tanh(), nn.Identity()))
    problem.model.train()
    problem.model[1].eval()
    problem.model[2][1].eval()
    modes = [part.training for part in problem.model.modules()]
    problem.objective()  # measures once how many examples fit in memory, in a way of its own
    seen = []
    handle = problem.model[1].register_forward_hook(
        lambda part, *_: seen.append((part.training, torch.is_grad_enabled()))
    )
    train(problem, _sgd(problem), generator=_generator(), epochs=2, batch_size=25)
    handle.remove()
    assert [part.training for part in problem.model.modules()] == modes
    assert all(p.grad is None for p in problem.model.parameters())
    # Steps (with gradients) in training mode, evaluations in evaluation mode.
    assert seen.count((True, True)) == 4
    assert all(training == enabled for training, enabled in seen)


def test_modes_come_back_after_an_error(make_problem):
    problem = make_problem()

    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("no")

    with evaluation_mode(problem.model):
        optimizer = Failing(problem.model.parameters(), lr=0.1)
        with pytest.raises(RuntimeError, match="no"):
            train(
                problem, optimizer, generator=_generator(), steps=1, schedule=Constant(warmup=9),
                batch_size=50,
            )  # fmt: skip
        assert not problem.model.training
        assert optimizer.param_groups[0]["lr"] == 0.1


def test_batch_normalisation_leaves_out_a_last_single_example(make_problem):
    problem = make_problem(nn.BatchNorm1d(8), nn.ReLU(), examples=33)
    history = train(problem, _sgd(problem), generator=_generator(), epochs=2, batch_size=16)
    assert history.step.tolist() == [0, 2, 4]
    assert "leaves out" in history.note
    plain = make_problem(examples=33)
    history = train(plain, _sgd(plain), generator=_generator(), epochs=2, batch_size=16)
    assert history.step.tolist() == [0, 3, 6]
    assert history.note == ""


def test_a_batch_larger_than_the_data_warns_and_is_all_of_it(make_problem):
    problem = make_problem()
    with pytest.warns(UserWarning, match="larger than the 50 training examples"):
        history = train(problem, _sgd(problem), generator=_generator(), epochs=2, batch_size=51)
    assert history.step.tolist() == [0, 1, 2]
    assert "larger than the 50" in history.note


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": -1.0}, "epochs"),
        ({"epochs": float("inf")}, "epochs"),
        ({"steps": 0}, "steps"),
        ({"epochs": 1, "steps": 1}, "not both"),
        ({"batch_size": 0}, "batch_size"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"evaluate_train_limit": 0}, "evaluate_train_limit"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_value": -1.0}, "clip_value"),
    ],
)
def test_arguments_out_of_range_are_refused(make_problem, options, word):
    problem = make_problem()
    theta = problem.space.theta()
    with pytest.raises(ValueError, match=word):
        train(problem, _sgd(problem), generator=_generator(), **{"batch_size": 50, **options})
    assert torch.equal(problem.space.theta(), theta)


def test_an_optimizer_of_another_model_is_refused(make_problem):
    with pytest.raises(ValueError, match=r"problem\.model\.parameters"):
        train(make_problem(), _sgd(make_problem()), generator=_generator())


def test_an_optimizer_without_a_rate_cannot_be_scheduled(make_problem):
    problem = make_problem()
    optimizer = _sgd(problem)
    for group in optimizer.param_groups:
        del group["lr"]
    with pytest.raises(ValueError, match="without 'lr'"):
        train(problem, optimizer, generator=_generator(), batch_size=50, schedule=Constant())


def test_an_optimizer_that_hides_its_loss_is_refused(make_problem):
    class Silent(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)

    problem = make_problem()
    optimizer = Silent(problem.model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="returned None"):
        train(problem, optimizer, generator=_generator(), batch_size=50)


def test_options_and_keyword_arguments_say_the_same(make_problem):
    def run(*options, **changes):
        problem = make_problem()
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        return train(problem, optimizer, *options, generator=_generator(), **changes)

    by_name = run(epochs=1, batch_size=20, clip_norm=0.5, label="a")
    by_options = run(TrainingOptions(epochs=1, batch_size=20, clip_norm=0.5, label="a"))
    mixed = run(TrainingOptions(epochs=1, batch_size=7, label="a"), batch_size=20, clip_norm=0.5)
    for other in (by_options, mixed):
        assert np.array_equal(by_name.step_loss, other.step_loss)
        assert by_name.label == other.label
    with pytest.raises(TypeError, match="epoch"):
        run(epoch=1)


def test_options_refuse_what_is_out_of_range_before_any_problem_is_there():
    with pytest.raises(ValueError, match="not both"):
        TrainingOptions(epochs=1, steps=1)
    for wrong in ({"steps": 0}, {"clip_norm": -1}, {"evaluate_train_limit": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TrainingOptions(**wrong)
