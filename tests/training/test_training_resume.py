import shutil

import numpy as np
import pytest
import torch
from torch import nn

from kobai import Problem
from kobai.results import History
from kobai.training import (
    Checkpoint,
    Cosine,
    EarlyStopping,
    LinearDecay,
    load_model,
    snapshots,
    train,
)


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _stop_after(count):
    asked = []

    def stop():
        asked.append(True)
        return len(asked) > count

    return stop


def _same(one: History, two: History) -> None:
    for name in (
        "step", "epoch", "train_loss", "train_accuracy", "validation_loss", "test_loss",
        "validation_accuracy", "test_accuracy", "gradient_norm", "learning_rate", "step_loss",
    ):  # fmt: skip
        assert np.array_equal(getattr(one, name), getattr(two, name), equal_nan=True), name
    assert (one.status, one.note) == (two.status, two.note)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.2),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


@pytest.mark.parametrize("cut", [0, 3, 4])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_equals_an_uninterrupted_one(make_problem, tmp_path, name, cut):
    """4 steps an epoch, so the cuts fall before the start, within an epoch and at its end."""
    options = {"epochs": 2, "batch_size": 14, "schedule": Cosine(warmup=2), "clip_norm": 0.5}
    whole = make_problem()
    expected = train(
        whole, OPTIMIZERS[name](whole.model.parameters()), generator=_generator(), **options
    )
    first = make_problem()
    broken = train(
        first,
        OPTIMIZERS[name](first.model.parameters()),
        generator=_generator(),
        checkpoint=Checkpoint(folder=tmp_path / "run", max_snapshots=0),
        stop=_stop_after(cut),
        **options,
    )
    assert broken.status == "interrupted"
    second = make_problem(seed=5)  # other parameters, another generator: all come from the file
    history = train(
        second,
        OPTIMIZERS[name](second.model.parameters()),
        generator=_generator(99),
        checkpoint=Checkpoint(folder=tmp_path / "run", resume=True, max_snapshots=0),
        **options,
    )
    assert torch.equal(second.space.theta(), whole.space.theta())
    _same(history, expected)


@pytest.mark.parametrize("cut", [3, 8])
def test_dropout_and_batch_normalisation_resume_too(make_problem, tmp_path, cut):
    layers = (nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4))
    options = {"epochs": 3, "batch_size": 14, "evaluate_every": 0.5}

    def make(seed=0):
        problem = make_problem(*layers, seed=seed)
        problem.model[1].reset_running_stats()
        return problem

    with torch.random.fork_rng():
        torch.manual_seed(11)
        whole = make()
        expected = train(
            whole, OPTIMIZERS["adam"](whole.model.parameters()), generator=_generator(), **options
        )
    end = {k: v.clone() for k, v in whole.model.state_dict().items()}
    with torch.random.fork_rng():
        torch.manual_seed(11)
        first = make()
        train(
            first,
            OPTIMIZERS["adam"](first.model.parameters()),
            generator=_generator(),
            checkpoint=Checkpoint(folder=tmp_path),
            stop=_stop_after(cut),
            **options,
        )
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        second = make(seed=1)
        history = train(
            second,
            OPTIMIZERS["adam"](second.model.parameters()),
            generator=_generator(99),
            checkpoint=Checkpoint(folder=tmp_path, resume=True),
            **options,
        )
    _same(history, expected)
    for key, value in second.model.state_dict().items():
        assert torch.equal(value, end[key]), key


def test_a_crash_resumes_from_the_last_checkpoint(make_problem, tmp_path):
    """The process dies at step 7; the last checkpoint is of step 6."""
    options = {"epochs": 3, "batch_size": 14, "evaluate_every": 0.25}
    whole = make_problem()
    expected = train(
        whole, OPTIMIZERS["momentum"](whole.model.parameters()), generator=_generator(), **options
    )

    def die():
        die.calls += 1
        if die.calls == 8:
            raise KeyboardInterrupt
        return False

    die.calls = 0
    first = make_problem()
    with pytest.raises(KeyboardInterrupt):
        train(
            first,
            OPTIMIZERS["momentum"](first.model.parameters()),
            generator=_generator(),
            checkpoint=Checkpoint(folder=tmp_path, every=0.5),
            stop=die,
            **options,
        )
    assert [p.name for p in tmp_path.glob("step_*")] == ["step_000006.safetensors"]
    second = make_problem(seed=5)
    history = train(
        second,
        OPTIMIZERS["momentum"](second.model.parameters()),
        generator=_generator(99),
        checkpoint=Checkpoint(folder=tmp_path, every=0.5, resume=True),
        **options,
    )
    _same(history, expected)
    # The snapshot of step 7 was from after the checkpoint; it was deleted and taken again.
    assert snapshots(tmp_path)[0] == history.step.tolist()


def test_early_stopping_resumes(make_problem, tmp_path):
    options = {
        "epochs": 40, "batch_size": 14, "early_stopping": EarlyStopping(patience=3),
        "evaluate_every": 0.5,
    }  # fmt: skip
    whole = make_problem()
    adam = torch.optim.Adam(whole.model.parameters(), lr=0.3)
    expected = train(whole, adam, generator=_generator(), **options)
    assert expected.status == "early-stopped"
    cut = int(expected.step[-1]) - 3
    for stop, resume in ((_stop_after(cut), False), (None, True), (None, True)):
        problem = make_problem()
        history = train(
            problem,
            torch.optim.Adam(problem.model.parameters(), lr=0.3),
            generator=_generator(),
            checkpoint=Checkpoint(folder=tmp_path, resume=resume),
            stop=stop,
            **options,
        )
    # The third time there was nothing left to do.
    _same(history, expected)
    assert torch.equal(problem.space.theta(), whole.space.theta())


def test_an_optimizer_that_shares_the_generator_resumes(make_problem, tmp_path):
    class Noisy(torch.optim.SGD):
        def __init__(self, parameters, generator):
            super().__init__(parameters, lr=0.1)
            self.generator = generator

        def step(self, closure=None):
            loss = super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    noise = torch.randn(p.shape, generator=self.generator, dtype=p.dtype)
                    p.data.add_(noise, alpha=0.01)
            return loss

    thetas = []
    for parts in ([None], [5, None]):
        folder = tmp_path / str(len(parts))
        for i, cut in enumerate(parts):
            problem, shared = make_problem(), _generator(i)
            train(
                problem,
                Noisy(problem.model.parameters(), shared),
                generator=shared,
                epochs=3,
                batch_size=14,
                checkpoint=Checkpoint(folder=folder, resume=bool(i)),
                stop=None if cut is None else _stop_after(cut),
            )
        thetas.append(problem.space.theta())
    assert torch.equal(*thetas)


def test_a_run_can_be_made_longer_but_not_shorter(make_problem, tmp_path):
    def go(epochs, resume, folder):
        problem = make_problem()
        history = train(
            problem,
            OPTIMIZERS["adam"](problem.model.parameters()),
            generator=_generator(),
            epochs=epochs,
            batch_size=14,
            checkpoint=None if folder is None else Checkpoint(folder=folder, resume=resume),
        )
        return history, problem.space.theta()

    go(2, False, tmp_path)
    longer, theta = go(4, True, tmp_path)
    expected, reference = go(4, False, None)
    _same(longer, expected)
    assert torch.equal(theta, reference)
    with pytest.raises(ValueError, match="longer, not shorter"):
        go(1, True, tmp_path)


def test_everything_loads_with_weights_only(make_problem, tmp_path):
    problem = make_problem()
    train(
        problem,
        OPTIMIZERS["lbfgs"](problem.model.parameters()),
        generator=_generator(),
        steps=3,
        batch_size=14,
        early_stopping=EarlyStopping(),
        checkpoint=Checkpoint(folder=tmp_path),
    )
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 3
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["model.safetensors", "snapshots", "state.pt", "step_000003.safetensors"]


def test_an_optimizer_that_cannot_be_saved_fails_at_once(make_problem, tmp_path):
    class Odd(torch.optim.SGD):
        def state_dict(self):
            return {**super().state_dict(), "odd": _generator()}

    problem = make_problem()
    with pytest.raises(TypeError, match="only tensors"):
        train(
            problem,
            Odd(problem.model.parameters(), lr=0.1),
            generator=_generator(),
            epochs=2,
            batch_size=50,
            checkpoint=Checkpoint(folder=tmp_path),
        )
    assert not (tmp_path / "state.pt").exists()


@pytest.fixture
def saved(make_problem, tmp_path):
    """A folder with a run that was interrupted after 5 of 12 steps, and how to go on with it."""
    folder = tmp_path / "run"

    def go(resume=True, problem=None, make=OPTIMIZERS["adam"], stop=None, **options):
        problem = make_problem() if problem is None else problem
        return train(
            problem,
            make(problem.model.parameters()),
            generator=_generator(),
            checkpoint=Checkpoint(folder=folder, resume=resume),
            stop=stop,
            **{"epochs": 3, "batch_size": 14, **options},
        )

    go(resume=False, stop=_stop_after(5))
    return folder, go


def _flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "harm",
    [
        lambda f: (f / "state.pt").write_bytes((f / "state.pt").read_bytes()[:-100]),
        lambda f: (f / "state.pt").write_bytes(b""),
        lambda f: (f / "state.pt").write_bytes(b"not a checkpoint"),
        lambda f: (f / "state.pt").unlink(),
        lambda f: torch.save({"step": 3}, f / "state.pt"),
        lambda f: _flip(f / "state.pt", (f / "state.pt").stat().st_size // 2),
        lambda f: _flip(f / "step_000005.safetensors", 400),
        lambda f: (f / "step_000005.safetensors").write_bytes(b"short"),
        lambda f: (f / "step_000005.safetensors").unlink(),
    ],
    ids=[
        "truncated", "empty", "other", "missing", "foreign", "flipped", "model flipped",
        "model truncated", "model missing",
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_clear_error(saved, harm):
    folder, go = saved
    harm(folder)
    before = {p: p.read_bytes() for p in folder.glob("*.*") if p.is_file()}
    with pytest.raises(ValueError, match="restore the file, or delete") as caught:
        go()
    assert "\n" not in str(caught.value)
    assert {p: p.read_bytes() for p in folder.glob("*.*") if p.is_file()} == before


def test_a_flipped_bit_anywhere_in_the_state_is_noticed_or_harmless(saved, make_problem):
    folder, go = saved
    original = (folder / "state.pt").read_bytes()
    keep = folder.with_name("keep")
    shutil.copytree(folder, keep)
    whole = make_problem()
    go(problem=whole)
    for at in range(0, len(original), len(original) // 8):
        shutil.rmtree(folder)
        shutil.copytree(keep, folder)
        _flip(folder / "state.pt", at)
        problem = make_problem()
        try:
            go(problem=problem)
        except ValueError:
            continue
        assert torch.equal(problem.space.theta(), whole.space.theta())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"make": OPTIMIZERS["sgd"]}, "optimizer was"),
        ({"make": lambda p: torch.optim.Adam(p, lr=0.5)}, "lr=0.02"),
        ({"batch_size": 10}, "batch_size was 14, is 10"),
        ({"schedule": LinearDecay()}, "schedule"),
        ({"clip_norm": 1.0}, "clipping"),
        ({"early_stopping": EarlyStopping()}, "early_stopping"),
        ({"seed": 1}, "seed was 0, is 1"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(saved, change, word):
    _, go = saved
    with pytest.raises(ValueError, match=word):
        go(**change)


def test_a_checkpoint_of_another_model_is_refused(saved, make_problem):
    _, go = saved
    held = make_problem()
    with torch.random.fork_rng():
        wide = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 2)).double()
    problem = Problem(wide, "categorical", train=held.train, validation=held.validation)
    with pytest.raises(ValueError, match=r"0\.bias is \(8,\) there and \(9,\)"):
        go(problem=problem)


def test_a_folder_with_another_run_is_refused(saved):
    folder, go = saved
    with pytest.raises(ValueError, match=r"holds another run.*resume=True"):
        go(resume=False)
    assert (folder / "step_000005.safetensors").exists()


def test_a_folder_that_cannot_be_written_is_refused(make_problem, tmp_path):
    (tmp_path / "file").write_text("in the way")
    problem = make_problem()
    with pytest.raises(ValueError, match="cannot be written"):
        train(
            problem,
            OPTIMIZERS["sgd"](problem.model.parameters()),
            generator=_generator(),
            batch_size=50,
            checkpoint=Checkpoint(folder=tmp_path / "file" / "run"),
        )


def test_a_failing_write_leaves_the_checkpoint_before(saved, monkeypatch):
    folder, go = saved
    import kobai.training.checkpoint as module

    write = module.atomic_write

    def failing(path, data):
        if path.name == "state.pt":
            raise OSError("disk full")
        return write(path, data)

    monkeypatch.setattr(module, "atomic_write", failing)
    with pytest.raises(OSError, match="disk full"):
        go()
    monkeypatch.undo()
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 5
    assert go().status == "finished"
    assert not list(folder.glob(".*"))


def test_the_returned_model_can_be_loaded(saved, make_problem):
    folder, go = saved
    problem, other = make_problem(), make_problem(seed=4)
    assert load_model(folder, other.model) == 5
    go(problem=problem)
    assert load_model(folder, other.model) == 12
    assert torch.equal(other.space.theta(), problem.space.theta())
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged"):
        load_model(folder, other.model)
    with pytest.raises(ValueError, match="no checkpoint"):
        load_model(folder / "elsewhere", other.model)
    assert not (folder / "elsewhere").exists()


def test_tied_parameters_are_saved_and_loaded(generator, tmp_path):
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    model[2].weight = model[0].weight
    x = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    problem = Problem(model, "gaussian", train=(x, x))
    train(
        problem,
        OPTIMIZERS["sgd"](model.parameters()),
        generator=_generator(),
        epochs=2,
        batch_size=10,
        checkpoint=Checkpoint(folder=tmp_path),
    )
    theta = problem.space.theta()
    problem.space.assign(torch.zeros_like(theta))
    load_model(tmp_path, model)
    assert torch.equal(problem.space.theta(), theta)
    assert model[2].weight is model[0].weight


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"every": float("nan")}, {"max_snapshots": 1}, {"max_snapshots": -1}]
)
def test_bad_checkpoint_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Checkpoint(folder="run", **options)
