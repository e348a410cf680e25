"""K-FAC against explicit matrices: factors, steps, and where the approximation is exact."""

import math

import kfac_oracle as oracle
import pytest
import torch
from torch import nn

import cases
from kobai.curvature.blocks.interface import past_weight
from kobai.curvature.blocks.kronecker import KroneckerFactors
from kobai.optim import KFAC
from kobai.optim.kfac.plan import plan_blocks
from kobai.problem import Categorical, Gaussian, Problem, as_likelihood, call_arguments
from tolerances import assert_close


def small_convolutional():
    """Grouped, dilated, strided and shared layers in one network."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding="same", dilation=2, bias=False),
            nn.Tanh(),
            nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), groups=2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(54, 3),
        ).double()
        x, y = torch.randn(4, 2, 5, 6).double(), torch.randint(0, 3, (4,))
    return Problem(net, "categorical", train=(x, y))


def token_network():
    """A linear network applied at every token, with a loss at every token."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)).double()
        x, y = torch.randn(5, 3, 3).double(), torch.randn(5, 3, 2).double()
    return Problem(net, "gaussian", train=(x, y))


PROBLEMS = {
    name: lambda name=name: cases.problem(name)
    for name in ("mlp", "inplace", "regression", "binary", "mean-squared", "cnn", "segmentation")
} | {"convolutional": small_convolutional, "tokens": token_network}

WITH_PLACES = ("cnn", "segmentation", "convolutional", "tokens")
SHARINGS = [(name, "expand") for name in PROBLEMS] + [(name, "trace") for name in WITH_PLACES]
"""Without places the two are one."""


def batch_of(problem):
    (batch,) = problem.objective().batches
    return batch


@pytest.mark.parametrize("output_damping", [0.0, 0.7])
@pytest.mark.parametrize(("name", "sharing"), SHARINGS)
def test_exact_factors_equal_those_from_jacobians(name, output_damping, sharing):
    problem = PROBLEMS[name]()
    optimizer = KFAC(
        problem.model, problem.likelihood, labels="exact", output_damping=output_damping,
        sharing=sharing,
    )  # fmt: skip
    optimizer.step(problem.objective())
    optimizer.zero_grad()
    fresh, saved = PROBLEMS[name](), oracle.saved(optimizer)
    for layer in plan_blocks(problem.model).layers:
        module = fresh.model.get_submodule(layer.name)
        a, b = oracle.factors(
            fresh.model, module, batch_of(fresh), problem.likelihood, layer.form.bias,
            output_damping, sharing,
        )  # fmt: skip
        assert_close(saved[layer.parameters[0]]["input_factor"], a)
        assert_close(saved[layer.parameters[0]]["output_factor"], b)


@pytest.mark.parametrize(("name", "sharing"), SHARINGS)
def test_steps_equal_those_of_explicit_block_matrices(name, sharing):
    """Averages, damping split, momentum, weight decay and trust region, over four steps."""
    problem, reference = PROBLEMS[name](), PROBLEMS[name]()
    settings = {"lr": 0.2, "damping": 0.05, "momentum": 0.7, "weight_decay": 0.1}
    bound = 3e-3
    optimizer = KFAC(
        problem.model,
        problem.likelihood,
        **settings,
        kl_bound=bound,
        output_damping=0.2,
        labels="exact",
        sharing=sharing,
        statistics_every=1,
        inverse_every=1,
    )
    model, space = reference.model, reference.space
    layers = plan_blocks(problem.model).layers
    averages, scales = {}, []
    momentum = torch.zeros_like(space.theta())
    for count in range(1, 5):
        optimizer.step(problem.objective())

        objective = reference.objective()
        objective()
        gradient = space.flatten({n: p.grad for n, p in model.named_parameters()})
        momentum = settings["momentum"] * momentum + gradient
        matrix = torch.zeros(space.dimension, space.dimension, dtype=torch.float64)
        owned = {
            name: indices
            for block in space.blocks("parameter")
            for name, indices in [(block.name, block.indices)]
        }
        for layer in layers:
            form, path = layer.form, layer.name
            new = oracle.factors(
                model,
                model.get_submodule(path),
                batch_of(reference),
                problem.likelihood,
                form.bias,
                0.2,
                sharing,
            )
            past = past_weight(count)
            old = averages.get(path, new)
            averages[path] = tuple(past * o + (1 - past) * n for o, n in zip(old, new, strict=True))
            weight = owned[f"{path}.weight"].view(form.groups, form.outputs, -1)
            bias = (
                owned[f"{path}.bias"].view(form.groups, form.outputs, 1)
                if form.bias
                else weight[..., :0]
            )
            where = torch.cat([weight, bias], 2)
            for g in range(form.groups):
                a, b = (average[g] for average in averages[path])
                index = where[g].flatten()
                matrix[index[:, None], index] = oracle.damped_block(a, b, settings["damping"])
        direction = torch.linalg.solve(matrix, momentum)
        size = settings["lr"] ** 2 * float(momentum @ direction)
        scale = min(1.0, math.sqrt(bound / size))
        scales.append(scale)
        theta = (1 - settings["lr"] * settings["weight_decay"]) * space.theta()
        space.assign(theta - scale * settings["lr"] * direction)
        assert_close(problem.space.theta(), space.theta(), 1e-8)
        assert optimizer.diagnostics()["step_scale"] == pytest.approx(scale)
    assert min(scales) < 1.0


def test_sampled_factors_equal_those_of_a_separate_pass():
    """The pass inside the user's backward is the one a user would write by hand."""
    problem = cases.problem("inplace")
    model, batch = problem.model, batch_of(problem)
    optimizer = KFAC(model, output_damping=0.0, generator=torch.Generator().manual_seed(7))
    problem.objective()()
    optimizer.step()

    fresh = cases.problem("inplace").model
    generator = torch.Generator().manual_seed(7)
    seen = {}

    def keep(name):
        def hook(_, arguments, out):
            seen[name] = arguments[0].detach().clone(), out
            out.retain_grad()
            return out.clone()  # what follows works in place

        return hook

    handles = [fresh[i].register_forward_hook(keep(i)) for i in (0, 2)]
    outputs = fresh(batch.inputs)
    u = Categorical().fisher_sample(outputs.detach(), batch.targets, generator)
    outputs.backward(u)
    for handle in handles:
        handle.remove()
    state = optimizer.state_dict()["state"]
    for position, index in ((0, 0), (2, 2)):
        inputs, out = seen[index]
        rows = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], 1)
        assert_close(state[position]["input_factor"][0], rows.T @ rows / len(rows))
        assert_close(state[position]["output_factor"][0], out.grad.T @ out.grad / len(rows))


@pytest.mark.parametrize("name", ["deep-linear", "tokens"])
def test_linear_networks_have_exactly_kronecker_factored_blocks(name):
    """Gaussian loss, linear layers, also shared over tokens: every layer block is exact."""
    problem = PROBLEMS.get(name, lambda: cases.problem(name))()
    fisher = oracle.dense_fisher(problem.objective())
    optimizer = KFAC(problem.model, "gaussian", labels="exact", output_damping=0.0)
    optimizer.step(problem.objective())
    indices = {b.name: b.indices for b in problem.space.blocks("parameter")}
    for name, entry in oracle.saved(optimizer).items():
        factors = KroneckerFactors(inputs=entry["input_factor"], outputs=entry["output_factor"])
        weight = indices[name].view(factors.outputs.shape[1], -1)
        bias = name.replace("weight", "bias")
        if bias in indices:
            weight = torch.cat([weight, indices[bias].unsqueeze(1)], 1)
        index = weight.flatten()
        assert_close(factors.dense()[0], fisher[index[:, None], index])


def test_scale_and_shift_have_the_exact_blocks_of_their_units():
    problem = cases.problem("norms")
    objective = problem.objective()
    fisher = oracle.dense_fisher(objective)
    optimizer = KFAC(
        problem.model, problem.likelihood, lr=0.03, damping=0.03, labels="exact",
        output_damping=0.0, kl_bound=0.03,
    )  # fmt: skip
    optimizer.step(objective)
    indices = {b.name: b.indices for b in problem.space.blocks("parameter")}
    units, saved = plan_blocks(problem.model).units, oracle.saved(optimizer)
    assert len(units) == 3
    for unit in units:
        places = torch.stack([indices[name] for name in unit.parameters], 1)
        truth = torch.stack([fisher[own[:, None], own] for own in places])
        assert_close(saved[unit.parameters[0]]["unit_fisher"].view(truth.shape), truth)
    space = problem.space
    gradient = space.flatten({n: p.grad for n, p in problem.model.named_parameters()})
    fresh = cases.problem("norms").space.theta()
    step = (fresh - space.theta()) / (0.03 * optimizer.diagnostics()["step_scale"])
    for unit in units:
        for own in torch.stack([indices[name] for name in unit.parameters], 1):
            damped = fisher[own[:, None], own] + 0.03 * torch.eye(len(own)).double()
            assert_close(step[own], torch.linalg.solve(damped, gradient[own]), 1e-8)


class Free(nn.Module):
    """A parameter that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.randn(2))

    def forward(self, x):
        return torch.tanh(self.layer(x)) * self.scale


@pytest.mark.parametrize("labels", ["sampled", "exact"])
def test_diagonal_blocks_estimate_the_diagonal_of_the_fisher_matrix(labels):
    """Squares of batch sums at random signs have the Fisher diagonal as their mean."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model, x = Free().double(), torch.randn(6, 3).double()
        y = torch.randn(6, 2).double()
    problem = Problem(model, "gaussian", train=(x, y))
    objective = problem.objective()
    diagonal = oracle.dense_fisher(objective).diagonal()
    observer = oracle.observer(problem.model, problem.likelihood, labels=labels, output_damping=0.0)
    entries, draws = observer.statistics.plan.entries, []
    (position,) = [i for i, entry in enumerate(entries) if entry.parameters == ("scale",)]
    for _ in range(200):
        objective()
        sums = observer.take().sums
        draws.append(sums.moments[position].flatten() / sums.weight)
    draws = torch.stack(draws)
    indices = {b.name: b.indices for b in problem.space.blocks("parameter")}
    expected = diagonal[indices["scale"]]
    error = (draws.mean(0) - expected) / (draws.std(0) / len(draws) ** 0.5)
    assert float(error.abs().max()) < 4.5


def test_observed_labels_give_the_empirical_fisher_whatever_the_scale_of_the_loss():
    problem = cases.problem("mlp")
    batch, model = batch_of(problem), problem.model
    args, _ = call_arguments(batch)
    expected = oracle.output_jacobian(model, model[4], batch)
    residual = problem.likelihood.residual(expected[2], batch.targets)
    moment = residual.T @ residual / batch.size
    for scale in (1.0, 1024.0):
        observer = oracle.observer(model, labels="observed", output_damping=0.0)
        (scale * nn.functional.cross_entropy(model(*args), batch.targets)).backward()
        sums = observer.take().sums
        assert_close(sums.moments[2].outputs[0] / sums.weight, moment)
        observer.close()


def test_observed_regression_takes_the_loss_at_its_word():
    problem = cases.problem("mean-squared")
    batch, model = batch_of(problem), problem.model
    outputs = model(batch.inputs)
    observer = oracle.observer(model, nn.MSELoss(), labels="observed", output_damping=0.0)
    nn.functional.mse_loss(model(batch.inputs), batch.targets).backward()
    sums = observer.take().sums
    likelihood = as_likelihood(nn.MSELoss())
    residual = likelihood.residual(outputs.detach(), batch.targets) / likelihood.scale**0.5
    assert_close(sums.moments[1].outputs[0], residual.T @ residual)
    assert sums.weight == outputs.numel()


def test_ignored_terms_do_not_count():
    """A batch with masked tokens has the statistics of the tokens that are there."""
    problem = cases.problem("segmentation")
    likelihood, batch = problem.likelihood, batch_of(problem)
    observer = oracle.observer(problem.model, likelihood, labels="exact")
    problem.objective()()
    sums = observer.take().sums
    assert sums.weight == likelihood.weight(batch.targets) < batch.targets.numel()


def test_one_step_solves_linear_regression():
    """Undamped, the exact natural gradient of a linear-Gaussian layer reaches the minimum."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = nn.Linear(4, 3).double()
        x, y = torch.randn(50, 4).double(), torch.randn(50, 3).double()
    problem = Problem(model, "gaussian", train=(x, y))
    optimizer = KFAC(
        model,
        Gaussian(),
        lr=1.0,
        damping=1e-13,
        momentum=0.0,
        kl_bound=None,
        output_damping=0.0,
        labels="exact",
    )
    optimizer.step(problem.objective())
    assert float(problem.objective().grad(problem.space.theta()).norm()) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["sampled", "observed"])
def test_output_damping_by_noise_has_the_exact_one_as_its_mean(labels):
    """Sampled and observed factors grow by c Σ JᵀJ on average, ignored terms left out."""
    problem = cases.problem("segmentation")
    objective = problem.objective()
    means = {}
    for damping in (0.0, 2.0):
        observer = oracle.observer(
            problem.model, problem.likelihood, labels=labels, output_damping=damping
        )
        draws = []
        for _ in range(400):
            objective()
            draws.append(observer.take().sums)
        moments = torch.stack([s.moments[1].outputs[0] / s.weight for s in draws])
        means[damping] = moments.mean(0), moments.std(0) / len(draws) ** 0.5
        observer.close()
    (batch,) = objective.batches
    module = problem.model[2]
    with_damping = oracle.factors(problem.model, module, batch, problem.likelihood, damping=2.0)[1][
        0
    ]
    without = oracle.factors(problem.model, module, batch, problem.likelihood)[1][0]
    difference = means[2.0][0] - means[0.0][0]
    error = (means[2.0][1] ** 2 + means[0.0][1] ** 2).sqrt() + 1e-12
    assert float(((difference - (with_damping - without)) / error).abs().max()) < 4.5
