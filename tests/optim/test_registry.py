"""The table of optimizers: what is derived from entries, and entries of a user's own."""

import dataclasses

import pytest
import torch

import cases
from kobai.optim import (
    CONFIGS,
    OPTIMIZERS,
    Choice,
    Fixed,
    Integer,
    Linear,
    Log,
    OptimizerEntry,
    build,
    default_space,
)
from kobai.optim.entry import domain_of
from laws import optimizers as laws


@dataclasses.dataclass(frozen=True, kw_only=True)
class SignConfig:
    """Steps along the signs of the gradient."""

    lr: float = 0.01
    """Length of a step in every coordinate."""


class Sign(torch.optim.Optimizer):
    """θ ← θ − η sign(∇L)."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
        return loss


ENTRY = OptimizerEntry(
    name="sign",
    config=SignConfig,
    make=lambda model, likelihood, config, generator: Sign(
        [p for p in model.parameters() if p.requires_grad], config.lr
    ),
    space={"lr": (1e-4, 0.1, "log")},
)


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_an_optimizer_of_ones_own_keeps_the_laws(law):
    law(lambda model, likelihood: build(ENTRY, model, likelihood), cases.problem("mlp"))


def test_an_entry_of_ones_own_has_a_space_and_a_label():
    assert default_space(ENTRY) == {"lr": Log(1e-4, 0.1)}
    assert ENTRY.label == "sign"
    with pytest.raises(TypeError, match="SignConfig"):
        build(ENTRY, cases.problem("mlp").model, config=CONFIGS["sgd"]())
    with pytest.raises(ValueError, match=r"\['rate'\].*choose from lr"):
        dataclasses.replace(ENTRY, space={"rate": (0.0, 1.0)})


def test_unknown_names_are_refused_with_the_choices():
    for call in (default_space, lambda name: build(name, cases.problem("mlp").model)):
        with pytest.raises(ValueError, match="unknown optimizer 'sgdd'; choose from sgd"):
            call("sgdd")


@pytest.mark.parametrize(
    ("plain", "domain"),
    [
        ((1e-3, 1.0, "log"), Log(1e-3, 1.0)),
        ((0.0, 1.0), Linear(0.0, 1.0)),
        ((1, 9, "integer"), Integer(1, 9)),
        ((1, 9, "integer log"), Integer(1, 9, log=True)),
        ([0.9, 0.99], Choice((0.9, 0.99))),
        (0.5, Fixed(0.5)),
        (Log(1.0, 2.0), Log(1.0, 2.0)),
    ],
)
def test_domains_are_read_from_plain_data(plain, domain):
    assert domain_of(plain) == domain


@pytest.mark.parametrize("plain", [(0.0, 1.0, "cubic"), (0.0, 1.0, "log", 3)])
def test_other_intervals_are_refused(plain):
    with pytest.raises(ValueError, match="linear, log, integer"):
        domain_of(plain)


def test_every_entry_has_a_look_of_its_own():
    looks = {(entry.color, entry.dash) for entry in OPTIMIZERS.values()}
    assert len(looks) == len(OPTIMIZERS)
    assert all(entry.label for entry in OPTIMIZERS.values())
