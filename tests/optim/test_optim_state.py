"""State dicts have torch's own layout, and survive every way of being saved."""

import copy
import io

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import cases
from kobai.optim import CONFIGS, build

OURS = [name for name in CONFIGS if name != "lbfgs"]
"""Torch's own L-BFGS keeps all state under one parameter, which torch's checkpoints refuse."""


def _trained(name, steps=2):
    problem = cases.problem("mlp")
    optimizer = build(name, problem.model, problem.likelihood)
    _run(problem, optimizer, steps)
    return problem, optimizer


def _run(problem, optimizer, steps):
    objective = problem.objective()
    for _ in range(steps):
        optimizer.step(objective)


def _fresh(name, problem):
    twin = copy.deepcopy(problem)
    twin.model.zero_grad()
    return twin, build(name, twin.model, twin.likelihood)


def _go_on_alike(pairs, steps=2):
    for _ in range(steps):
        for problem, optimizer in pairs:
            _run(problem, optimizer, 1)
        (first, _), *others = pairs
        for problem, _ in others:
            assert torch.equal(first.space.theta(), problem.space.theta())


def _old_layout(state_dict):
    """The layout before version 2: shared state under a string of its own beside the parameters."""
    entries, shared = {}, {}
    for key, entry in state_dict["state"].items():
        entries[key] = dict(entry)
        for name in [n for n, v in entry.items() if isinstance(v, dict) and "layout" in v]:
            shared = {k: v for k, v in entries[key].pop(name).items() if k != "layout"}
            key_of_old = name if name in ("kfac", "ekfac") else "kobai"
    return {**state_dict, "state": {**entries, key_of_old: shared}}


@pytest.mark.parametrize("name", OURS)
def test_every_way_of_saving_goes_on_to_the_bit(name):
    """torch.save, a deep copy, and torch's distributed checkpoints by parameter name."""
    problem, optimizer = _trained(name)
    state_dict = optimizer.state_dict()
    assert all(isinstance(key, int) for key in state_dict["state"])
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    loaded = _fresh(name, problem)
    loaded[1].load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy((problem, optimizer))
    by_name = get_optimizer_state_dict(problem.model, optimizer)
    names = dict(problem.model.named_parameters())
    assert set(by_name["state"]) <= set(names)
    file = io.BytesIO()
    torch.save(by_name, file)
    file.seek(0)
    set_back = _fresh(name, problem)
    saved = torch.load(file, weights_only=True)
    set_optimizer_state_dict(set_back[0].model, set_back[1], saved)
    _go_on_alike([(problem, optimizer), loaded, copied, set_back])


@pytest.mark.parametrize("name", ["kfac", "ekfac", "newton", "ngd", "bfgs", "hessian-free"])
def test_states_of_the_old_layout_load(name):
    problem, optimizer = _trained(name)
    loaded = _fresh(name, problem)
    loaded[1].load_state_dict(_old_layout(copy.deepcopy(optimizer.state_dict())))
    _go_on_alike([(problem, optimizer), loaded])


def test_foreign_and_newer_states_are_refused_in_one_line():
    problem, optimizer = _trained("newton")
    _, other = _fresh("ngd", problem)
    with pytest.raises(ValueError, match="not saved by NaturalGradient"):
        other.load_state_dict(optimizer.state_dict())
    newer = copy.deepcopy(optimizer.state_dict())
    newer["state"][0]["newton"]["layout"] = 99
    with pytest.raises(ValueError, match="layout 99"):
        optimizer.load_state_dict(newer)
