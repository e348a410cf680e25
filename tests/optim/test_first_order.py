"""The table of names: right classes, settings checked at once, Muon and AdamW as one."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

import cases
from kobai.optim import CONFIGS, FIRST_ORDER, KFAC, AdamConfig, KFACConfig, MuonAdamW, build
from kobai.optim.muon import orthogonalized
from kobai.problem import surfaces
from tolerances import assert_close

NAMES = [*FIRST_ORDER, "kfac"]


@pytest.fixture
def model():
    return cases.problem("mlp").model


@pytest.mark.parametrize("name", NAMES)
def test_names_and_classes(name, model):
    optimizer = build(name, model)
    assert isinstance(optimizer, FIRST_ORDER.get(name, KFAC))
    assert isinstance(optimizer, torch.optim.Optimizer)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_frozen_documented_dataclasses(name):
    config = CONFIGS[name]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0
    assert config.__doc__


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lr", [0.0, -0.1, math.nan, math.inf])
def test_impossible_learning_rates_name_their_flag(name, lr):
    # K-FAC's settings are those of its class, too, whose arguments are no flags.
    flag = "" if name == "kfac" else rf"--{name}\."
    with pytest.raises(Exception, match=rf"{flag}lr must be positive"):
        CONFIGS[name](lr=lr)


@pytest.mark.parametrize("name", NAMES)
def test_negative_weight_decay_names_its_flag(name):
    flag = "" if name == "kfac" else rf"--{name}\."
    with pytest.raises(Exception, match=rf"{flag}weight_decay"):
        CONFIGS[name](weight_decay=-1.0)


def test_settings_reach_the_optimizer(model):
    group = build("adam", model, config=AdamConfig(lr=0.5, beta2=0.7)).param_groups[0]
    assert (group["lr"], group["betas"]) == (0.5, (0.9, 0.7))
    assert build("nesterov", model).param_groups[0]["nesterov"]
    assert build("rmsprop", model).param_groups[0]["alpha"] == 0.99
    kfac = build("kfac", model, "categorical", KFACConfig(damping=0.5, inverse_every=7))
    assert kfac.param_groups[0]["damping"] == 0.5
    assert kfac.inverse_every == 7


def test_the_defaults_of_settings_and_class_agree(model):
    direct, built = KFAC(model), build("kfac", model)
    assert {k: v for k, v in direct.param_groups[0].items() if k != "params"} == {
        k: v for k, v in built.param_groups[0].items() if k != "params"
    }
    for name in ("statistics_every", "inverse_every", "kl_bound", "output_damping", "labels"):
        assert getattr(direct, name) == getattr(built, name)


def test_unknown_names_and_foreign_settings_are_refused(model):
    with pytest.raises(ValueError, match="unknown optimizer 'sgdd'; choose from sgd"):
        build("sgdd", model)
    with pytest.raises(TypeError, match="SGDConfig"):
        build("sgd", model, config=AdamConfig())
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters"):
        build("sgd", model)


def test_muon_takes_the_hidden_matrices():
    model = cases.problem("transformer").model
    optimizer = build("muon", model)
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for p in optimizer.param_groups[0]["params"]}
    assert "layer.linear1.weight" in hidden
    assert "embed.weight" not in hidden
    assert "head.weight" not in hidden
    rest = optimizer.param_groups[1]["params"]
    assert len(hidden) + len(rest) == len(names)


@pytest.mark.parametrize("native", [True, False])
def test_muon_steps_as_torchs_own(model, native, monkeypatch):
    """One object makes the updates of the two it is made of, also in full precision."""
    monkeypatch.setattr("kobai.optim.muon.has_bfloat16", lambda: native)
    if not native:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # torch's rounding
    twin = cases.problem("mlp")
    optimizer = build("muon", model)
    muon = torch.optim.Muon(
        [twin.model[0].weight, twin.model[2].weight],
        lr=1e-3,
        weight_decay=0.01,
        adjust_lr_fn="match_rms_adamw",
    )
    chosen = {id(p) for g in muon.param_groups for p in g["params"]}
    adamw = torch.optim.AdamW(
        [p for p in twin.model.parameters() if id(p) not in chosen], lr=1e-3, weight_decay=0.01
    )
    problem = cases.problem("mlp")
    problem.model.load_state_dict(model.state_dict())
    for _ in range(4):
        twin.objective()()
        muon.step()
        adamw.step()
        for p, q in zip(model.parameters(), problem.model.parameters(), strict=True):
            q.data.copy_(p.data)
        problem.objective()()
        for p, q in zip(model.parameters(), problem.model.parameters(), strict=True):
            p.grad = q.grad
        optimizer.step()
    for p, q in zip(model.parameters(), twin.model.parameters(), strict=True):
        assert_close(p.detach(), q.detach(), 0.0 if native else 1e-12)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
def test_full_precision_muon_orthogonalises(shape):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(*shape, generator=generator).double()
    found = orthogonalized(matrix, (1.875, -1.25, 0.375), 60)  # these converge to U Vᵀ
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert_close(found, u @ v)


def test_kernels_are_matrices_to_muon(monkeypatch):
    """A convolution whose kernel covers its input is a linear layer, and trained as one."""
    monkeypatch.setattr("kobai.optim.muon.has_bfloat16", lambda: False)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        conv, head = nn.Conv2d(2, 5, 3).double(), nn.Linear(5, 3).double()
    linear = nn.utils.skip_init(nn.Linear, 18, 5).double()
    linear.weight.data = conv.weight.detach().flatten(1).clone()
    linear.bias.data = conv.bias.detach().clone()
    nets = (
        nn.Sequential(conv, nn.Flatten(), nn.Tanh(), head),
        nn.Sequential(nn.Flatten(), linear, nn.Tanh(), copy.deepcopy(head)),
    )
    x = torch.randn(20, 2, 3, 3, generator=generator).double()
    y = torch.randint(0, 3, (20,), generator=generator)
    for net in nets:
        optimizer = build("muon", net)
        assert len(optimizer.param_groups[0]["params"]) == 1
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert_close(p.detach().reshape(q.shape), q.detach(), 1e-12)


@pytest.mark.parametrize("setting", ["lr", "momentum", "weight_decay"])
def test_muon_refuses_what_is_out_of_range(setting, model):
    with pytest.raises(ValueError, match=f"{setting}.*-1"):
        MuonAdamW(model, **{setting: -1.0})


def test_muon_has_the_groups_it_was_made_with(model):
    optimizer = MuonAdamW(model)
    with pytest.raises(ValueError, match="one group for Muon and one for AdamW"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))]})
    assert len(optimizer.param_groups) == 2


def test_a_head_tied_to_the_embedding_is_the_output_layer():
    with torch.random.fork_rng():
        embedding, head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        net = nn.Sequential(embedding, nn.Linear(4, 5), nn.Linear(5, 4), head)
    assert len(MuonAdamW(net).param_groups[0]["params"]) == 2  # the head is the output layer
    head.weight = embedding.weight
    hidden = MuonAdamW(net).param_groups[0]["params"]
    assert [tuple(p.shape) for p in hidden] == [(5, 4), (4, 5)]


def test_muon_without_hidden_or_without_other_parameters():
    with torch.random.fork_rng():
        single = nn.Linear(3, 2)
        vector = nn.LayerNorm(3)
        matrix = nn.Linear(3, 2, bias=False)
    assert len(MuonAdamW(single).param_groups) == 2
    assert len(MuonAdamW(vector).param_groups) == 1
    assert len(MuonAdamW(matrix).param_groups) == 1
    vector.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable"):
        MuonAdamW(vector)


RATES = {
    "sgd": 0.1, "momentum": 0.05, "nesterov": 0.05, "adagrad": 0.5, "rmsprop": 0.01,
    "adadelta": 30.0, "adam": 0.1, "adamw": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", RATES)
def test_the_known_minimum_is_reached_at_a_falling_rate(name):
    """On the quadratic, which is unimodal; a constant rate leaves adaptive methods swinging."""
    surface = surfaces.quadratic(10.0)
    objective = surface.objective()
    config = CONFIGS[name](lr=RATES[name], weight_decay=0.0)
    optimizer = build(name, objective.space.module, "gaussian", config)
    total = 400
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: max(0.0, 1 - k / total))
    for _ in range(total):
        optimizer.step(objective)
        scheduler.step()
    assert surface.distance(objective.theta()) < 1e-3
