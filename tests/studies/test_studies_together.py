"""Trials trained together are the trials trained one by one."""

import numpy as np
import pytest
import torch

from kobai import data, models, optim
from kobai.studies import Setting, StudyTraining, Task, run_trial, run_trials
from kobai.studies.batched_trials import reason_not_to_batch, run_batched
from kobai.studies.linear_stack import LinearStack
from kobai.studies.stacked import Stack, design_of, matrices_of
from kobai.training import LinearDecay

FAMILIES = {
    "linear": models.FAMILIES["linear"](widths=(12, 12, 12)),
    "linear-skips": models.FAMILIES["linear"](widths=(12, 12, 12), skips=True, bias=True),
    "relu": models.FAMILIES["mlp"](widths=(12, 12)),
    "tanh-skips": models.FAMILIES["mlp"](widths=(12, 12), activation="tanh", skips=True),
}


def task(network: str, optimizer: str = "momentum", **changes) -> Task:
    settings = dict(changes.pop("config", {}))
    of = changes.pop("seeds", (3,))
    chosen = FAMILIES[network]
    return Task(
        setting=Setting(
            splits=data.load("digits", limit=(320, 64)),
            model="mlp" if isinstance(chosen, models.FAMILIES["mlp"]) else "linear",
            model_options=chosen,
            validation=0.2,
            dtype=torch.float64,
        ),
        optimizer=optimizer,
        config=optim.CONFIGS[optimizer](**settings),
        schedule=changes.pop("schedule", LinearDecay(final_fraction=0.1)),
        training=StudyTraining(
            epochs=changes.pop("epochs", 25),
            batch_size=changes.pop("batch_size", 64),
            evaluate_every=5,
            **changes,
        ),
        seeds=of,
        metric="validation_loss",
    )


def assert_alike(together, alone):
    assert together.state == alone.state
    assert together.epoch == alone.epoch
    np.testing.assert_allclose(together.value, alone.value, rtol=1e-5)
    for name, values in alone.final.items():
        np.testing.assert_allclose(together.final[name], values, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(together.curve, alone.curve, rtol=1e-5)


@pytest.mark.parametrize("network", FAMILIES)
def test_momentum(network):
    """40 steps in float64 agree to 1e-5."""
    values = [
        {"lr": 0.02, "momentum": 0.9},
        {"lr": 0.005, "momentum": 0.0, "schedule.final_fraction": 1.0},
        {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.01},
    ]
    work = task(network, epochs=10)
    for one, together in zip(values, run_batched(work, values), strict=True):
        assert_alike(together, run_trial(work, one))


@pytest.mark.parametrize(
    ("network", "output_damping"),
    [
        ("linear-skips", 0.0),
        *(
            pytest.param(network, damping, marks=pytest.mark.slow)
            for network in FAMILIES
            for damping in (0.0, 1.0)
            if (network, damping) != ("linear-skips", 0.0)
        ),
    ],
)
def test_kfac(network, output_damping):
    """100 steps in float64 agree to 1e-5: the same labels, refreshes, bounds and inverses."""
    fixed = {"lr": 0.03, "damping": 0.1, "output_damping": output_damping}
    work = task(network, "kfac", config=fixed)
    values = [
        {"lr": 0.03, "momentum": 0.9},
        {"lr": 0.01, "momentum": 0.0, "damping": 0.3},
        {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.01, "damping": 0.1},
    ]
    for one, together in zip(values, run_batched(work, values), strict=True):
        assert_alike(together, run_trial(work, one))


@pytest.mark.parametrize("network", ["relu", "linear-skips"])
def test_kfac_of_small_batches(network):
    """With few examples a step gradients are preconditioned factor by factor."""
    work = task(network, "kfac", config={"lr": 0.03, "damping": 0.1}, batch_size=4, epochs=25 / 64)
    values = [{"lr": 0.03, "momentum": 0.9}, {"lr": 0.01, "momentum": 0.5, "damping": 0.3}]
    for one, together in zip(values, run_batched(work, values), strict=True):
        assert_alike(together, run_trial(work, one))


def test_seeds_are_averaged():
    work = task("linear", epochs=1, seeds=(3, 4))
    values = [{"lr": 0.02}, {"lr": 0.01}]
    for one, together in zip(values, run_batched(work, values), strict=True):
        assert_alike(together, run_trial(work, one))


def test_a_trial_that_diverges_takes_no_other_with_it():
    work = task("relu", epochs=5)
    values = [{"lr": 0.01, "momentum": 0.5}, {"lr": 1e4, "momentum": 0.9}]
    good, lost = run_batched(work, values)
    assert_alike(good, run_trial(work, values[0]))
    assert lost.state == "diverged"
    assert lost.value == np.inf
    assert "stopped after step" in lost.note


def test_stopping_interrupts_all():
    asked = iter([False, False, True])
    found = run_batched(task("linear"), [{"lr": 0.01}] * 2, stop=lambda: next(asked))
    assert [one.state for one in found] == ["interrupted"] * 2


STACKS = [
    *((Stack, network) for network in FAMILIES),
    *((LinearStack, network) for network in FAMILIES if network.startswith("linear")),
]


def stack_and_batch(kind, network, rows=7):
    problem = task(network).setting.problem(0)
    stack = kind(design_of(problem.model), [m[None].clone() for m in matrices_of(problem.model)])
    return problem, stack, problem.train.first(rows)


@pytest.mark.parametrize(("kind", "network"), STACKS)
def test_gradients_are_those_of_autograd(kind, network):
    problem, stack, batch = stack_and_batch(kind, network)
    run = stack.forward(batch.inputs.flatten(1))
    outputs = problem.model(batch.inputs)
    torch.testing.assert_close(run.outputs[0], outputs.detach())
    u = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0), dtype=outputs.dtype)
    found = stack.gradients(run, u[None])
    wanted = torch.autograd.grad((outputs * u).sum(), list(problem.model.parameters()))
    flat = torch.cat([g.flatten() for g in wanted])
    mine = []
    for layer in found:
        matrix = layer.dense()[0]
        if stack.design.bias:
            mine += [matrix[:, :-1].flatten(), matrix[:, -1]]
        else:
            mine.append(matrix.flatten())
    torch.testing.assert_close(torch.cat(mine), flat)


@pytest.mark.parametrize(("kind", "network"), STACKS)
@pytest.mark.parametrize("rows", [7, 90])
def test_moments_are_those_of_the_captured_layers(kind, network, rows):
    """Of what hooks see, with fewer and with more examples than inputs."""
    problem, stack, batch = stack_and_batch(kind, network, rows)
    inputs, outputs = [], []

    def note(module, args, output):
        inputs.append(args[0].detach().flatten(1))
        outputs.append(output)

    for module in problem.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(note)
    f = problem.model(batch.inputs)
    u = torch.randn(f.shape, generator=torch.Generator().manual_seed(0), dtype=f.dtype)
    gradients = torch.autograd.grad((f * u).sum(), outputs)
    run = stack.forward(batch.inputs.flatten(1))
    for (a, b), x, g in zip(stack.moments(run, u[None], 3.0), inputs, gradients, strict=True):
        if stack.design.bias:
            x = torch.cat([x, x.new_ones(rows, 1)], dim=1)
        torch.testing.assert_close(a.reshape(x.shape[1], -1), x.T @ x / rows)
        torch.testing.assert_close(b[0], g.T @ g / 3.0)


@pytest.mark.parametrize(
    ("optimizer", "changes", "searched", "told"),
    [
        ("adam", {}, ["lr"], "no stacked form"),
        ("momentum", {"clip_norm": 1.0}, ["lr"], "clipped"),
        ("momentum", {"patience": 2}, ["lr"], "stop early"),
        ("momentum", {}, ["training.batch_size"], "batch_size"),
        ("kfac", {}, ["lr"], "damping is automatic"),
        ("kfac", {"config": {"labels": "exact"}}, ["lr", "damping"], "labels"),
        ("kfac", {}, ["lr", "damping", "statistics_every"], "statistics_every"),
    ],
)
def test_what_cannot_be_trained_together_says_why(optimizer, changes, searched, told):
    assert told in reason_not_to_batch(task("linear", optimizer, **changes), searched)
    with pytest.raises(ValueError, match="cannot be trained together"):
        run_batched(task("linear", optimizer, **changes), [dict.fromkeys(searched, 0.1)])


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_settings_are_trained_either_way(optimizer):
    work = task("linear", optimizer, epochs=1)
    values = [{"lr": 0.01}, {"lr": 0.003}]
    for one, found in zip(values, run_trials(work, values), strict=True):
        assert_alike(found, run_trial(work, one))


def test_normalised_networks_have_no_stacked_form():
    options = models.FAMILIES["mlp"](widths=(4,), normalization="batch")
    model = models.build(
        options, input_shape=(3,), num_outputs=2, generator=torch.Generator().manual_seed(0)
    )
    assert "BatchNorm" in design_of(model)
