"""Natural gradient: explicit matrices, wide networks, degenerate data."""

import io
import itertools
import math
import time

import numpy as np
import pytest
import torch
from torch import nn

import cases
from kobai.curvature import GGN, STRUCTURES, Fisher
from kobai.optim import GaussNewton, LevenbergMarquardt, NaturalGradient
from kobai.optim.second_order import fisher_solve
from kobai.problem import Gaussian, Problem, WeightedSum
from laws import optimizers as laws

STRUCTURE_NAMES = [name for name in STRUCTURES if name != "chain"]


def _step(optimizer, problem):
    """What one step adds to θ."""
    before = problem.space.theta()
    optimizer.step(problem.objective())
    return problem.space.theta() - before


def _batch(problem):
    (batch,) = problem.objective().batches
    return batch


def _gradient(problem):
    return problem.objective().grad(problem.space.theta())


def _relative(a, b):
    return float((a - b).norm() / b.norm())


# Laws


def _descends(make, problem):
    laws.descends(make, problem, steps=6)


@pytest.mark.parametrize("structure", STRUCTURE_NAMES)
@pytest.mark.parametrize(
    "law",
    [
        _descends,
        laws.resumes_to_the_bit,
        laws.survives_copies,
        laws.obeys_schedulers,
        laws.covers_the_parameters,
    ],
    ids=lambda law: law.__name__,
)
def test_law_for_every_structure(law, structure):
    law(lambda m, lik: NaturalGradient(m, lik, structure=structure), cases.problem("mlp"))


@pytest.mark.parametrize(
    "case", ["inplace", "binary", "mean-squared", "smoothed", "soft", "cnn", "frozen", "single"]
)
def test_exact_natural_gradient_descends_on_many_kinds(case):
    laws.descends(NaturalGradient, cases.problem(case), steps=8)


@pytest.mark.parametrize("case", ["transformer", "segmentation", "tied", "keywords", "norms"])
def test_steps_on_unusual_networks_equal_the_dense_solve(case):
    problem = cases.problem(case)
    expected = _dense_step(problem, GGN(problem.objective()).dense(), 0.1)
    found = _step(NaturalGradient(problem.model, problem.likelihood, damping=0.1), problem)
    assert _relative(found, expected) < 1e-8


def test_momentum_decay_and_draws_resume_to_the_bit():
    laws.resumes_to_the_bit(
        lambda m, lik: NaturalGradient(
            m, lik, momentum=0.7, weight_decay=1e-3, labels="sampled", damping=0.1, kl_bound=0.1
        ),
        cases.problem("mlp"),
    )


def test_frozen_parameters_and_buffers_stay_to_the_bit():
    problem = cases.problem("resnet")
    problem.model.stem.weight.requires_grad_(False)
    batch = _batch(problem)
    problem = Problem(problem.model, "categorical", train=(batch.inputs, batch.targets))
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    optimizer = NaturalGradient(problem.model, problem.likelihood)
    for _ in range(2):
        optimizer.step(problem.objective())
    after = problem.model.state_dict()
    still = {"stem.weight"} | {n for n, _ in problem.model.named_buffers()}
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (name in still), name


# Against explicit matrices


def _dense_step(problem, matrix, damping):
    damped = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)
    return -torch.linalg.solve(damped, _gradient(problem))


@pytest.mark.parametrize("structure", STRUCTURE_NAMES)
@pytest.mark.parametrize("case", ["mlp", "regression", "cnn"])
def test_step_equals_the_explicit_solve(case, structure):
    problem = cases.problem(case)
    matrix = Fisher(problem.objective(), structure).dense()
    expected = _dense_step(problem, matrix, 1e-3)
    optimizer = NaturalGradient(
        problem.model,
        problem.likelihood,
        structure=structure,
        damping=1e-3,
        damping_form="exact",
    )
    assert _relative(_step(optimizer, problem), expected) < 1e-8


@pytest.mark.parametrize("labels", ["observed", "sampled"])
def test_other_labels_equal_the_explicit_solve(labels):
    problem = cases.problem("mlp")
    seeded = torch.Generator().manual_seed(3)
    matrix = Fisher(problem.objective(), "full", labels, generator=seeded).dense()
    expected = _dense_step(problem, matrix, 1e-2)
    optimizer = NaturalGradient(
        problem.model,
        problem.likelihood,
        labels=labels,
        damping=1e-2,
        generator=torch.Generator().manual_seed(3),
    )
    assert _relative(_step(optimizer, problem), expected) < 1e-8


def test_chunks_do_not_change_the_step():
    problem, twin = cases.problem("mlp"), cases.problem("mlp")
    whole = _step(NaturalGradient(problem.model, problem.likelihood, damping=1e-2), problem)
    before = twin.space.theta()
    NaturalGradient(twin.model, twin.likelihood, damping=1e-2).step(twin.objective(chunk=4))
    assert _relative(twin.space.theta() - before, whole) < 1e-9


def test_conjugate_gradients_above_the_bound_give_the_same_step(monkeypatch):
    problem, twin = cases.problem("mlp"), cases.problem("mlp")
    direct = _step(NaturalGradient(problem.model, problem.likelihood, damping=1e-2), problem)
    monkeypatch.setattr("kobai.optim.second_order.fisher_solve.LARGEST_SYSTEM", 5)
    optimizer = NaturalGradient(twin.model, twin.likelihood, damping=1e-2)
    assert _relative(_step(optimizer, twin), direct) < 1e-4
    assert optimizer.diagnostics()["cg_iterations"] > 0
    layered = NaturalGradient(twin.model, twin.likelihood, structure="layer")
    with pytest.raises(ValueError, match="smaller batches"):
        layered.step(twin.objective())


def test_gaussian_natural_gradient_is_gauss_newton():
    problem, twin = cases.problem("regression"), cases.problem("regression")
    natural = _step(NaturalGradient(problem.model, problem.likelihood, damping=0.05), problem)
    newton = _step(GaussNewton(twin.model, twin.likelihood, damping=0.05), twin)
    torch.testing.assert_close(natural, newton, rtol=1e-12, atol=1e-14)


# One step solves


@pytest.mark.parametrize("examples", [4, 30])
def test_one_undamped_step_solves_a_linear_gaussian_problem(examples, generator):
    """Fewer and more examples than parameters: both reach the least-squares solution."""
    model = nn.utils.skip_init(nn.Linear, 5, 2).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(examples, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(examples, 2, generator=generator, dtype=torch.float64)
    problem = Problem(model, "gaussian", train=(x, y))
    wide = torch.cat([x, torch.ones(examples, 1, dtype=torch.float64)], 1)
    best = 0.5 * (wide @ torch.linalg.lstsq(wide, y).solution - y).square().sum() / examples
    NaturalGradient(model, "gaussian", damping=0.0).step(problem.objective())
    assert float(problem.objective().value(problem.space.theta()) - best) < 1e-12
    assert float(_gradient(problem).norm()) < 1e-8


class _Erf(nn.Module):
    def forward(self, x):
        return torch.erf(x)


def _wide(width, generator, *, examples=16, inputs=30):
    """theory.md's network: L = 3, one output, σ_w² = 2, σ_b² = 0.1, standard parameterisation."""
    layers = []
    sizes = [inputs, width, width, 1]
    for fan, out in itertools.pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, fan, out).double()
        with torch.no_grad():
            for p, variance in ((layer.weight, 2.0 / fan), (layer.bias, 0.1)):
                p.copy_(variance**0.5 * torch.randn(p.shape, generator=generator).double())
        layers += [layer, _Erf()]
    model = nn.Sequential(*layers[:-1])
    x = torch.randn(examples, inputs, generator=generator).double()
    y = torch.randn(examples, 1, generator=generator).double()
    return Problem(model, "gaussian", train=(x, y))


def _residual_ratio(problem, **settings):
    y = _batch(problem).targets
    before = problem.objective().outputs(problem.space.theta()) - y
    NaturalGradient(problem.model, "gaussian", **settings).step(problem.objective())
    after = problem.objective().outputs(problem.space.theta()) - y
    return float(after.norm() / before.norm())


@pytest.mark.parametrize(
    ("structure", "alpha", "damping", "form", "limit"),
    [
        ("full", 1, 0.0, "exact", 0.05),
        ("layer", 3, 0.0, "exact", 0.05),
        ("tridiagonal", 1, 1e-6, "exact", 0.05),
        ("kronecker", 16 * 2 + 1, 1e-7, "each", 0.1),
    ],
)
def test_one_step_at_one_over_alpha_fits_a_wide_network(
    structure, alpha, damping, form, limit, generator
):
    """Karakida and Osawa 2020: isotropy in function space, at width 512 and 16 examples."""
    problem = _wide(512, generator)
    ratio = _residual_ratio(
        problem, structure=structure, lr=1 / alpha, damping=damping, damping_form=form
    )
    assert ratio < limit


@pytest.mark.parametrize(("structure", "alpha"), [("full", 1), ("layer", 3)])
def test_half_the_rate_halves_the_residual_each_step(structure, alpha, generator):
    """theory.md's check 3c: 0.5, 0.25, 0.125, 0.063 within 1 %."""
    problem = _wide(512, generator)
    y = _batch(problem).targets
    optimizer = NaturalGradient(
        problem.model, "gaussian", structure=structure, lr=0.5 / alpha, damping=0.0
    )
    residual = problem.objective().outputs(problem.space.theta()) - y
    first = float(residual.norm())
    for k in range(1, 5):
        optimizer.step(problem.objective())
        residual = problem.objective().outputs(problem.space.theta()) - y
        assert float(residual.norm()) / first == pytest.approx(0.5**k, rel=0.01)


def test_step_size_of_the_model_finds_one_over_alpha_itself(generator):
    ratio = _residual_ratio(
        _wide(512, generator), structure="layer", damping=1e-8, step_size="model"
    )
    assert ratio < 0.05


# Control of the step


def test_kl_bound_bounds_the_divergence_of_the_predictions():
    problem = cases.problem("mlp")
    theta = problem.space.theta()
    outputs = problem.objective().outputs(theta).log_softmax(1)
    optimizer = NaturalGradient(problem.model, problem.likelihood, damping=1e-3, kl_bound=1e-6)
    step = _step(optimizer, problem)
    after = problem.objective().outputs(theta + step).log_softmax(1)
    divergence = float((outputs.exp() * (outputs - after)).sum(1).mean())
    assert divergence == pytest.approx(0.5e-6, rel=0.02)
    told = optimizer.diagnostics()
    assert told["bounded_steps"] == 1
    assert told["kl"] == pytest.approx(1e-6)


def test_schedule_of_the_damping_is_followed():
    problem = cases.problem("mlp")
    optimizer = NaturalGradient(problem.model, problem.likelihood, damping=lambda k: 1.0 / (1 + k))
    seen = []
    for _ in range(3):
        optimizer.step(problem.objective())
        seen.append(optimizer.param_groups[0]["damping"])
    assert seen == [1.0, 0.5, 1 / 3]


def test_momentum_keeps_a_share_of_the_last_update():
    problem, twin = cases.problem("mlp"), cases.problem("mlp")
    heavy = NaturalGradient(problem.model, problem.likelihood, damping=1.0, momentum=0.5)
    plain = NaturalGradient(twin.model, twin.likelihood, damping=1.0)
    first = _step(heavy, problem)
    torch.testing.assert_close(first, _step(plain, twin))
    torch.testing.assert_close(_step(heavy, problem), 0.5 * first + _step(plain, twin))


def test_decisions_about_the_damping_are_recorded_and_saved():
    problem = cases.problem("mlp")
    optimizer = NaturalGradient(problem.model, problem.likelihood)
    for _ in range(5):
        optimizer.step(problem.objective())
    decisions = optimizer.diagnostics()["decisions"]
    assert [d["step"] for d in decisions] == list(range(5))
    for now, then in itertools.pairwise(decisions):
        assert now["next"] == then["damping"]
        assert now["ratio"] == pytest.approx(now["actual"] / now["predicted"])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = NaturalGradient(problem.model, problem.likelihood)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.diagnostics() == optimizer.diagnostics()


# Never a NaN


def test_non_finite_losses_are_skipped_and_counted():
    problem = cases.problem("regression")
    with torch.no_grad():
        problem.model[2].weight[0, 0] = math.nan
    before = problem.space.theta()
    optimizer = NaturalGradient(problem.model, problem.likelihood)
    optimizer.step(problem.objective())
    torch.testing.assert_close(problem.space.theta(), before, rtol=0, atol=0, equal_nan=True)
    assert optimizer.diagnostics()["skipped_steps"] == 1


def test_an_uphill_direction_of_the_tridiagonal_matrix_is_a_status_and_is_not_taken():
    """Near minus its least eigenvalue, λ makes the matrix indefinite along the gradient."""
    problem = cases.problem("mlp")
    matrix = Fisher(problem.objective(), "tridiagonal").dense().numpy()
    least = np.linalg.eigvalsh(matrix)[0]
    assert least < 0
    damping = -least * 0.999
    gradient = _gradient(problem).numpy()
    assert gradient @ np.linalg.solve(matrix + damping * np.eye(len(matrix)), gradient) < 0
    rule = LevenbergMarquardt(initial=damping)
    for given, following in ((damping, damping), (rule, damping * rule.raise_by)):
        optimizer = NaturalGradient(
            problem.model, problem.likelihood, structure="tridiagonal", damping=given
        )
        assert not _step(optimizer, problem).any()
        told = optimizer.diagnostics()
        assert (told["status"], told["ascent_steps"]) == ("indefinite", 1)
        assert told["damping"] == pytest.approx(following)
    optimizer.step(problem.objective())
    assert optimizer.diagnostics()["status"] == "ok"


@pytest.mark.parametrize("structure", STRUCTURE_NAMES)
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e8])
def test_degenerate_inputs_never_give_a_nan(structure, scale):
    problem = cases.problem("mlp")
    batch = _batch(problem)
    x = scale * batch.inputs[:1].expand(9, -1).clone()
    problem = Problem(problem.model, "categorical", train=(x, batch.targets))
    optimizer = NaturalGradient(problem.model, problem.likelihood, structure=structure)
    for _ in range(3):
        assert math.isfinite(float(optimizer.step(problem.objective())))
    assert bool(torch.isfinite(problem.space.theta()).all())


def test_confident_wrong_predictions_are_solved_without_division_by_their_probability():
    problem = cases.problem("mlp")
    with torch.no_grad():
        problem.model[4].bias += torch.tensor([0.0, 900.0, -900.0]).double()
    expected = _dense_step(problem, GGN(problem.objective()).dense(), 0.5)
    optimizer = NaturalGradient(problem.model, problem.likelihood, damping=0.5)
    assert _relative(_step(optimizer, problem), expected) < 1e-8


# Wrong use


def test_wrong_use_is_refused():
    problem, other = cases.problem("mlp"), cases.problem("mlp")
    optimizer = NaturalGradient(problem.model, problem.likelihood)
    for argument in (None, lambda: torch.zeros(()), WeightedSum([(1.0, problem.objective())])):
        with pytest.raises(TypeError, match=r"problem\.objective"):
            optimizer.step(argument)
    with pytest.raises(ValueError, match="another model"):
        optimizer.step(other.objective())
    with pytest.raises(ValueError, match="likelihood"):
        NaturalGradient(problem.model, "bernoulli").step(problem.objective())
    with pytest.raises(ValueError, match="one group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="missing"):
        optimizer.load_state_dict(torch.optim.SGD(problem.model.parameters()).state_dict())
    for settings in (
        {"lr": 0.0},
        {"damping": -1.0},
        {"damping": math.nan},
        {"damping": 0.0, "structure": "tridiagonal"},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"kl_bound": 0.0},
    ):
        with pytest.raises(ValueError):
            NaturalGradient(problem.model, problem.likelihood, **settings)
    with pytest.raises(ValueError, match="lower_by"):
        LevenbergMarquardt(raise_by=0.5)


def test_active_dropout_is_refused_by_name(generator):
    model = nn.Sequential(nn.utils.skip_init(nn.Linear, 3, 2), nn.Dropout(0.5)).double()
    nn.init.ones_(model[0].weight), nn.init.zeros_(model[0].bias)
    x = torch.randn(4, 3, generator=generator).double()
    problem = Problem(model, Gaussian(), train=(x, x[:, :2]))
    model.train()
    with pytest.raises(ValueError, match="Dropout"):
        NaturalGradient(model, "gaussian").step(problem.objective())


# Size


@pytest.mark.slow
def test_exact_step_of_a_million_parameters(generator):
    """P ≈ 10⁶, N = 200, C = 10: a system of 2,000, not of 10⁶."""
    sizes = [784, 800, 400, 10]
    layers = []
    for fan, out in itertools.pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, fan, out)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(out, fan, generator=generator) * (2 / fan) ** 0.5)
            layer.bias.zero_()
        layers += [layer, nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    x = torch.randn(200, 784, generator=generator)
    y = torch.randint(0, 10, (200,), generator=generator)
    problem = Problem(model, "categorical", train=(x, y))
    objective = problem.objective()
    assert problem.space.dimension > 900_000
    start = time.process_time()
    for _ in range(5):
        objective()
    gradient = (time.process_time() - start) / 5
    optimizer = NaturalGradient(model, "categorical", damping=0.1)
    first = float(optimizer.step(objective))
    start = time.process_time()
    optimizer.step(objective)
    step = time.process_time() - start
    print(f"a step costs {step:.2f} s, {step / gradient:.0f} gradients")
    assert float(objective.value(problem.space.theta())) < 0.5 * first


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e9])
def test_dual_systems_in_float32_are_solved_as_in_float64(condition):
    """Refined or, where that does not converge, factorised in float64: NumPy's answer rounded."""
    generator = torch.Generator().manual_seed(5)
    basis, _ = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))
    values = torch.logspace(-math.log10(condition), 0, 60, dtype=torch.float64)
    matrix = ((basis * values) @ basis.T).float()
    matrix = (matrix + matrix.T) / 2
    right = torch.randn(60, generator=generator)
    damping = 1e-1 / condition
    # The matrix as it was rounded, so that the solution is that of one well-defined system.
    damped = matrix.double() + damping * torch.eye(60, dtype=torch.float64)
    if float(np.linalg.eigvalsh(damped.numpy())[0]) <= 0:
        damping = 1e-6
        damped = matrix.double() + damping * torch.eye(60, dtype=torch.float64)
    expected = np.linalg.solve(damped.numpy(), right.double().numpy())
    found, status = fisher_solve.dual_solution(matrix, right, damping)
    assert status == "ok"
    assert found.dtype == torch.float32
    assert float(_relative(found.double(), torch.from_numpy(expected))) < 3e-7
