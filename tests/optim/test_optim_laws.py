"""The laws of optimizers, on torch's own and on kobai's."""

import pytest
import torch

import cases
from kobai.optim import KFAC, OPTIMIZERS, build
from laws import optimizers as laws

TORCH = {
    "torch-sgd": lambda model, _: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "torch-adam": lambda model, _: torch.optim.Adam(model.parameters(), lr=0.01),
}


def _trainable(make):
    """Torch's optimizers are given the parameters that can be trained, as users do."""

    def filtered(model, likelihood):
        optimizer = make(model, likelihood)
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p.requires_grad]
        return optimizer

    return filtered


MAKERS = {name: _trainable(make) for name, make in TORCH.items()} | {
    name: lambda model, likelihood, name=name: build(name, model, likelihood)
    for name, entry in OPTIMIZERS.items()
    # Those that are handed the objective have their laws beside their own tests.
    if not (entry.needs_objective or entry.on_all_data)
}
SLOW = {"adagrad", "adadelta", "rmsprop", "adam", "adamw", "muon"}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_law_on_a_small_network(law, name):
    problem = cases.problem("mlp")
    if law is laws.descends and name in SLOW:
        law(MAKERS[name], problem, steps=300, factor=0.95)
    else:
        law(MAKERS[name], problem)


KFAC_CASES = [
    "inplace",
    "regression",
    "binary",
    "deep-linear",
    "mean-squared",
    "smoothed",
    "soft",
    "cnn",
    "resnet",
    "lstm",
    "gru",
    "transformer",
    "segmentation",
    "tied",
    "keywords",
    "single",
    "norms",
]


@pytest.mark.parametrize("case", KFAC_CASES)
@pytest.mark.parametrize(
    "law",
    [laws.descends, laws.resumes_to_the_bit, laws.survives_copies, laws.covers_the_parameters],
    ids=lambda law: law.__name__,
)
def test_law_for_kfac_on_every_kind_of_network(law, case):
    law(KFAC, cases.problem(case))


@pytest.mark.parametrize("labels", ["exact", "observed"])
@pytest.mark.parametrize(
    "case",
    ["mlp", "binary", "regression", pytest.param("transformer", marks=pytest.mark.slow), "norms"],
)
def test_kfac_descends_with_every_kind_of_labels(labels, case):
    laws.descends(lambda m, lik: KFAC(m, lik, labels=labels), cases.problem(case))
