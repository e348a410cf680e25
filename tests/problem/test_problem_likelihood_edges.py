"""Likelihoods where they may break: random draws, extreme logits, low precision, wrong targets."""

import math

import pytest
import torch

from kobai.problem import Bernoulli, Categorical, Gaussian
from tolerances import assert_close

DRAWS = 40_000
SIGMAS = 5.0


def repeated(row: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One example, as often as there are draws."""
    return row.expand(DRAWS, *row.shape), targets.expand(DRAWS, *targets.shape)


def assert_mean(samples: torch.Tensor, expected: torch.Tensor) -> None:
    """Within five standard errors, at the fixed number of draws; exact where nothing varies."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert (((samples.mean(0) - expected).abs()) <= SIGMAS * error + 1e-12).all()


def cases():
    f = torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64)
    y = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    soft = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    tokens = torch.tensor([[0.4, -1.0, 2.0], [1.0, 0.0, 0.3]], dtype=torch.float64)
    yield pytest.param(Categorical(), f, torch.tensor(1), id="categorical")
    yield pytest.param(Categorical(scale=3.0), f, torch.tensor(1), id="categorical-scaled")
    yield pytest.param(Categorical(label_smoothing=0.3), f, torch.tensor(1), id="smoothed")
    yield pytest.param(Categorical(), f, soft, id="masses")
    yield pytest.param(Categorical(label_smoothing=0.3), f, soft, id="smoothed-masses")
    yield pytest.param(Categorical(), tokens, torch.tensor([2, -100]), id="ignored")
    yield pytest.param(
        Categorical(ignore_index=2), tokens, torch.tensor([0, 2]), id="ignored-class"
    )
    yield pytest.param(
        Categorical(ignore_index=255), tokens, torch.tensor([0, 255]), id="ignored-far"
    )
    yield pytest.param(Categorical(axis=1), tokens.T, torch.tensor([2, 0]), id="axis-1")
    yield pytest.param(Bernoulli(), f, y, id="bernoulli")
    yield pytest.param(Bernoulli(scale=0.5), f, y, id="bernoulli-scaled")
    yield pytest.param(Gaussian(), f, y, id="gaussian")
    yield pytest.param(Gaussian(scale=4.0), f, y, id="gaussian-scaled")


@pytest.mark.parametrize(("likelihood", "row", "targets"), list(cases()))
def test_second_moment_of_sampled_scores_is_the_hessian(likelihood, row, targets, generator):
    f, y = repeated(row, targets)
    u = likelihood.fisher_sample(f, y, generator)
    assert u.shape == f.shape
    basis = torch.eye(row.numel(), dtype=torch.float64).view(-1, *row.shape)
    one, label = row.unsqueeze(0), targets.unsqueeze(0)
    hessian = torch.stack([likelihood.hvp(one, label, e[None]).flatten() for e in basis])
    u = u.flatten(1)
    assert_mean(u, torch.zeros_like(u[0]))
    assert_mean(u.unsqueeze(2) * u.unsqueeze(1), hessian)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shift", [0.0, 60.0])
def test_classes_are_drawn_with_their_probabilities(dtype, shift, generator):
    logits = torch.tensor([0.5, -1.0, 2.0, -4.0]).to(dtype) + shift
    f, y = repeated(logits, torch.tensor(0))
    labels = Categorical().sample(f, y, generator)
    assert labels.dtype == torch.int64
    counts = torch.nn.functional.one_hot(labels, 4).double()
    assert_mean(counts, logits.double().softmax(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_outputs_are_drawn_with_their_probabilities(dtype, generator):
    logits = torch.tensor([0.5, -1.0, 5.0, -6.0]).to(dtype)
    f, y = repeated(logits, torch.zeros(4, dtype=dtype))
    drawn = Bernoulli().sample(f, y, generator)
    assert drawn.dtype == dtype
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert_mean(drawn.double(), logits.double().sigmoid())


def test_noise_has_variance_one_over_scale(generator):
    f, y = repeated(torch.tensor([1.0, -2.0], dtype=torch.float64), torch.zeros(2).double())
    drawn = Gaussian(scale=4.0).sample(f, y, generator)
    assert_mean(drawn, f[0])
    assert_mean((drawn - f).square(), torch.full((2,), 0.25).double())


@pytest.mark.parametrize(("likelihood", "row", "targets"), list(cases()))
def test_draws_repeat_with_the_seed_and_fit_as_targets(likelihood, row, targets):
    f, y = row.expand(7, *row.shape), targets.expand(7, *targets.shape)
    draws = [likelihood.sample(f, y, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    likelihood.check(f, draws[0])
    if not targets.is_floating_point():
        ignored = y == likelihood.ignore_index
        assert (draws[0][ignored] == likelihood.ignore_index).all()


def test_draws_carry_no_graph(generator):
    f = torch.zeros(3, 2, requires_grad=True)
    for likelihood, y in ((Categorical(), torch.zeros(3).long()), (Gaussian(), torch.zeros(3, 2))):
        assert not likelihood.sample(f, y, generator).requires_grad
        assert not likelihood.fisher_sample(f, y, generator).requires_grad


EXTREME = [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 1e4, 1e4], [0.0, 1e-4, -1e4]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_saturated_classes_stay_finite(dtype, smoothing, soft, generator):
    f = torch.tensor(EXTREME).to(dtype)
    y = torch.full((4, 3), 1 / 3).to(dtype) if soft else torch.tensor([1, 0, 2, 2])
    likelihood = Categorical(label_smoothing=smoothing)
    u = torch.ones_like(f)
    u[:, 0] = 2.0
    reference = Categorical(label_smoothing=smoothing)
    exact = reference.nll(f.double(), y.double() if soft else y)
    nll = likelihood.nll(f, y)
    assert nll.dtype == dtype
    assert_close(nll.double(), exact, 8 * torch.finfo(dtype).eps)
    for part in (
        likelihood.residual(f, y),
        likelihood.hvp(f, y, u),
        likelihood.factor_product(f, y, u),
        likelihood.fisher_sample(f, y, generator),
    ):
        assert part.dtype == dtype
        assert part.isfinite().all()
        assert float(part.abs().max()) <= 2.0
    drawn = likelihood.sample(f, y, generator)
    assert int(drawn[0]) == 0
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < 3


def test_many_classes_do_not_overflow_half_precision():
    """The sum of a thousand log-probabilities of −60 exceeds what float16 holds; the loss not."""
    f = torch.zeros(1, 2000, dtype=torch.float16)
    f[0, 0] = 60.0
    nll = Categorical(label_smoothing=0.1).nll(f, torch.tensor([0]))
    assert float(nll) == pytest.approx(0.1 * 60 * 1999 / 2000, rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_saturated_outputs_stay_finite(dtype, generator):
    f = torch.tensor([[1e4, -1e4, 0.0, 30.0]]).to(dtype)
    y = torch.tensor([[0.0, 1.0, 0.5, 1.0]]).to(dtype)
    likelihood = Bernoulli()
    nll = likelihood.nll(f, y)
    assert float(nll) == pytest.approx(2e4 + math.log(2), rel=4 * torch.finfo(dtype).eps)
    for part in (
        likelihood.residual(f, y),
        likelihood.hvp(f, y, f.clamp(-1, 1)),
        likelihood.factor_product(f, y, f.clamp(-1, 1)),
        likelihood.fisher_sample(f, y, generator),
    ):
        assert part.dtype == dtype
        assert part.isfinite().all()
    assert likelihood.sample(f, y, generator)[0, :2].tolist() == [1.0, 0.0]


def test_variance_of_a_saturated_output_keeps_its_relative_precision():
    """p (1 − p) from p alone would be 0 on one side and right on the other."""
    f = torch.tensor([[30.0, -30.0]])
    variance = Bernoulli().hvp(f, torch.zeros(1, 2), torch.ones(1, 2))
    assert variance[0].tolist() == pytest.approx([math.exp(-30)] * 2, rel=1e-5)


@pytest.mark.parametrize("likelihood", [Gaussian(), Gaussian(scale=3.0)])
def test_regression_in_low_precision(likelihood, generator):
    f, y = torch.full((2, 3), 100.0).half(), torch.zeros(2, 3).half()
    expected = torch.full((2,), likelihood.scale * 1.5e4)
    assert_close(likelihood.nll(f, y).float(), expected, torch.finfo(torch.float16).eps)
    assert likelihood.fisher_sample(f, y, generator).dtype == torch.float16


@pytest.mark.parametrize(
    ("likelihood", "outputs", "targets", "message"),
    [
        (Categorical(), (4, 3), torch.tensor([0, 1, 2, 3]), r"0…2 for a model with 3.*0…3"),
        (Categorical(), (4, 3), torch.tensor([0, -1, 2, 0]), r"0…2.*-1…2"),
        (Categorical(ignore_index=-1), (2, 3), torch.tensor([-100, 0]), "-100"),
        (Categorical(), (4, 3), torch.zeros(4, 1).long(), r"must have shape \(4,\), got \(4, 1\)"),
        (Categorical(), (4, 5, 3), torch.zeros(4, 3).long(), r"shape \(4, 5\), got \(4, 3\)"),
        (Categorical(axis=1), (4, 3, 5), torch.zeros(4, 3).long(), r"shape \(4, 5\), got \(4, 3\)"),
        (Categorical(), (4, 3), torch.zeros(4, dtype=torch.int32), "int64, got torch.int32"),
        (Categorical(), (4, 3), torch.zeros(4), r"outputs' shape \(4, 3\), got \(4,\).*int64"),
        (Categorical(), (2, 3), torch.tensor([[0.5, 0.6, -0.1]] * 2), "must not be negative"),
        (Categorical(), (2, 3), torch.full((2, 3), math.nan), "NaN or infinite"),
        (Categorical(), (4,), torch.zeros(4).long(), r"class axis, \(N, C\), got shape \(4,\)"),
        (Categorical(axis=1), (4,), torch.zeros(4).long(), "class axis"),
        (Bernoulli(), (4, 3), torch.zeros(4), "broadcasting would be wrong"),
        (Bernoulli(), (4, 1), torch.zeros(4), "reshape one of them"),
        (Bernoulli(), (4,), torch.zeros(4).long(), "floating point, got torch.int64"),
        (Bernoulli(), (4,), torch.tensor([0.0, 1.0, 2.0, 0.0]), r"\[0, 1\], got 0…2"),
        (Bernoulli(), (2,), torch.tensor([0.0, math.nan]), "NaN or infinite"),
        (Gaussian(), (4, 1), torch.zeros(4), "broadcasting would be wrong"),
        (Gaussian(), (4,), torch.zeros(4).bool(), "floating point, got torch.bool"),
        (Gaussian(), (2,), torch.tensor([0.0, math.inf]), "NaN or infinite"),
    ],
)
def test_targets_that_do_not_fit_are_refused(likelihood, outputs, targets, message):
    with pytest.raises(ValueError, match=message):
        likelihood.check(torch.zeros(outputs), targets)


def test_targets_that_fit_are_not():
    Categorical().check(torch.zeros(4, 3), torch.tensor([0, 2, -100, 1]))
    Categorical(axis=1).check(torch.zeros(2, 3, 5), torch.zeros(2, 5).long())
    Categorical().check(torch.zeros(2, 3), torch.full((2, 3), -100.0).abs())
    Categorical().check(torch.zeros(2, 3), torch.full((2,), -100))
    Bernoulli().check(torch.zeros(2), torch.tensor([0.0, 0.3]))
    Gaussian().check(torch.zeros(2, 3), torch.full((2, 3), -7.0))
