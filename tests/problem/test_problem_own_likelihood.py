"""A user's likelihood, Poisson counts by their log-rates: five methods, and everything works."""

import pytest
import torch
from torch import Tensor, nn

import cases
from kobai import Problem
from kobai.curvature import GGN, Fisher, Hessian, critical_learning_rate
from kobai.landscape import true_minimum
from kobai.optim import KFAC
from kobai.problem import Likelihood, as_likelihood, register_likelihood
from tolerances import assert_close


class Poisson(Likelihood):
    """Counts with mean exp(f), as a user would write it."""

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.exp() - targets * outputs).flatten(1).sum(1)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.exp() - targets

    def hvp(self, outputs: Tensor, targets: Tensor, u: Tensor) -> Tensor:
        return outputs.exp() * u

    def factor_product(self, outputs: Tensor, targets: Tensor, s: Tensor) -> Tensor:
        return (outputs / 2).exp() * s

    def sample(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(outputs.detach().exp(), generator=generator)

    @classmethod
    def from_torch(cls, loss: nn.PoissonNLLLoss) -> "Poisson":
        if not loss.log_input or loss.full or loss.reduction != "mean":
            raise ValueError(f"{loss} has options that Poisson does not know")
        made = cls()
        made.reduction = "terms"
        return made


class Strict(Poisson):
    """The same with the range of its targets, as a careful user adds."""

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        super().check(outputs, targets)
        if bool((targets < 0).any()):
            raise ValueError("counts are not negative")


class Squared(Poisson):
    """A residual that is not affine in its targets, from which they cannot be told."""

    def nll(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.exp() - targets.square() * outputs).flatten(1).sum(1)

    def residual(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.exp() - targets.square()


def counts(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=g, dtype=dtype)
    rates = (x @ torch.randn(4, 2, generator=g, dtype=dtype) / 2).exp()
    return x, torch.poisson(rates, generator=g)


def network(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def problem(likelihood=None):
    return Problem(network(), likelihood or Poisson(), train=counts())


def train(likelihood, steps=20, dtype=torch.float64, loss=None, closure=False):
    model, (x, y) = network(dtype), counts(dtype)
    loss = loss or (lambda f: (f.exp() - y * f).sum(1).mean())
    optimizer, losses = KFAC(model, likelihood), []

    def evaluate():
        optimizer.zero_grad()
        value = loss(model(x))
        value.backward()
        return value

    for _ in range(steps):
        if closure:
            losses.append(float(optimizer.step(evaluate).detach()))
        else:
            losses.append(float(evaluate().detach()))
            optimizer.step()
    return losses


@pytest.mark.parametrize(
    ("likelihood", "dtype"), [(Poisson(), torch.float64), (Strict(), torch.float32)]
)
def test_kfac_trains_at_its_defaults(likelihood, dtype):
    losses = train(likelihood, steps=15, dtype=dtype)
    assert losses[-1] < 0.65 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_counts_are_read_off_the_gradient(dtype):
    x, y = counts()
    f = network()(x).detach().to(dtype).requires_grad_()
    (f.exp() - y.to(dtype) * f).sum(1).mean().backward()
    found = Strict().recover_targets(f, f.grad)
    assert found.kind == "regression", found.reason
    if dtype == torch.bfloat16:
        assert float((found.targets - y).abs().max()) < 0.1
    else:
        assert torch.equal(found.targets, y.to(dtype))


def test_another_loss_is_refused_by_the_range_of_targets():
    _, y = counts()
    f = torch.zeros(64, 2, dtype=torch.float64, requires_grad=True)
    (3 * (f.exp() - y * f)).sum(1).mean().backward()
    found = Strict().recover_targets(f, f.grad)
    assert found.targets is None
    assert "counts are not negative" in found.reason


def test_a_family_that_cannot_say_its_targets_names_the_way_out():
    _, y = counts()

    def loss(f):
        return (f.exp() - y.square() * f).sum(1).mean()

    with pytest.raises(RuntimeError, match=r"step\(closure\)") as caught:
        train(Squared(), loss=loss)
    message = str(caught.value)
    assert "\n" not in message
    assert "object at 0x" not in message
    assert "Squared.targets_of_residual" in message
    losses = train(Squared(), steps=4, loss=loss, closure=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", [Hessian, GGN, Fisher])
def test_curvature_is_the_dense_one(kind):
    objective = problem().objective()
    theta = objective.theta()
    batch = next(iter(objective.batches))
    outputs = objective.forward(theta, batch).detach()
    if kind is Hessian:
        wanted = torch.func.hessian(cases.dense_loss(objective))(theta)
    else:
        jacobian = torch.func.jacrev(lambda t: objective.forward(t, batch))(theta)
        wanted = torch.einsum("ncp,nc,ncq->pq", jacobian, outputs.exp(), jacobian) / objective.size
    assert_close(kind(objective).dense(), wanted, 1e-10)


def test_sampled_labels_estimate_the_fisher_matrix(generator):
    objective = problem().objective()
    exact = Fisher(objective).dense()
    sampled = Fisher(objective, labels="sampled", samples=400, generator=generator).dense()
    assert float((sampled - exact).norm() / exact.norm()) < 0.05


def test_the_critical_learning_rate_is_two_over_the_largest_eigenvalue():
    objective = problem().objective()
    largest = float(torch.linalg.eigvalsh(GGN(objective).dense())[-1])
    found = critical_learning_rate(objective, gauss_newton=True)
    assert_close(torch.tensor(found.value), torch.tensor(2 / largest), 1e-2)


def test_its_own_targets_make_a_true_minimum():
    found = true_minimum(problem())
    assert found.proof.likelihood == "poisson"
    assert all(check.passed for check in found.proof.checks)
    assert {check.name for check in found.proof.checks} >= {"gradient", "no negative eigenvalue"}
    assert found.proof.loss == 0.0
    with pytest.raises(ValueError, match="no decisions"):
        true_minimum(problem(), "hard")


def test_own_targets_need_a_mean():
    with pytest.raises(ValueError, match=r"define Squared\.mean"):
        true_minimum(problem(Squared()))


def test_a_name_and_a_torch_loss_may_stand_for_it():
    register_likelihood("poisson", Poisson, torch_loss=nn.PoissonNLLLoss)
    named, converted = as_likelihood("poisson"), as_likelihood(nn.PoissonNLLLoss())
    assert isinstance(named, Poisson)
    x, y = counts()
    f = network()(x).detach()
    value = converted.nll(f, y).sum() / converted.weight(y)
    assert_close(value, nn.PoissonNLLLoss()(f, y), 1e-13)
    with pytest.raises(ValueError, match="options that Poisson does not know"):
        as_likelihood(nn.PoissonNLLLoss(full=True))
    losses = train("poisson", steps=2)
    assert losses[-1] < losses[0]


def test_registration_refuses_what_it_cannot_keep():
    with pytest.raises(ValueError, match="kobai's own"):
        register_likelihood("gaussian", Poisson)
    with pytest.raises(TypeError, match="from_torch"):
        register_likelihood("counts", lambda: Poisson(), torch_loss=nn.PoissonNLLLoss)
    with pytest.raises(ValueError, match="register_likelihood"):
        as_likelihood("counts")


def test_it_says_what_it_is():
    assert repr(Poisson()) == "Poisson()"
    assert Poisson.name == "poisson"
