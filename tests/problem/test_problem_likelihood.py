"""Likelihoods against torch: its losses for values, its transforms for derivatives."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kobai.problem import Bernoulli, Categorical, Gaussian, Likelihood, as_likelihood
from tolerances import assert_close


@dataclasses.dataclass
class Instance:
    """A likelihood at some outputs and targets, and torch's loss of one example."""

    likelihood: Likelihood
    outputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]

    def torch_nll(self, outputs: Tensor) -> Tensor:
        """Per example, by torch's functionals with reduction="sum"."""
        rows = [self.loss(outputs[i : i + 1], self.targets[i : i + 1]) for i in range(len(outputs))]
        return self.likelihood.scale * torch.stack(rows)

    def hessian(self) -> Tensor:
        size = self.outputs.numel()

        def total(flat):
            return self.torch_nll(flat.view_as(self.outputs)).sum()

        return torch.func.hessian(total)(self.outputs.flatten()).view(size, size)

    def dense(self, function) -> Tensor:
        """The matrix of a map from output-shaped to output-shaped tensors."""
        basis = torch.eye(self.outputs.numel(), dtype=self.outputs.dtype)
        columns = [
            function(self.outputs, self.targets, e.view_as(self.outputs)).flatten() for e in basis
        ]
        return torch.stack(columns, dim=1)


@st.composite
def categorical(draw) -> Instance:
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    extra = draw(st.sampled_from([(), (2,), (2, 2)]))
    axis = draw(st.sampled_from([-1, 1]))
    smoothing = draw(st.sampled_from([0.0, 0.1, 0.7]))
    kind = draw(st.sampled_from(["labels", "ignored", "soft", "masses"]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    logits = 2 * torch.randn(n, c, *extra, generator=g, dtype=torch.float64)
    if kind in ("soft", "masses"):
        targets = torch.rand(n, c, *extra, generator=g, dtype=torch.float64)
        if kind == "soft":
            targets = targets / targets.sum(1, keepdim=True)
    else:
        targets = torch.randint(0, c, (n, *extra), generator=g)
        if kind == "ignored":
            targets[torch.rand(targets.shape, generator=g) < 0.5] = 77

    def loss(outputs, targets):
        if axis == -1:
            outputs = outputs.movedim(-1, 1)
            targets = targets.movedim(-1, 1) if targets.is_floating_point() else targets
        ignore = -100 if targets.is_floating_point() else 77
        return F.cross_entropy(
            outputs, targets, ignore_index=ignore, label_smoothing=smoothing, reduction="sum"
        )

    likelihood = Categorical(
        ignore_index=77,
        label_smoothing=smoothing,
        axis=axis,
        scale=draw(st.sampled_from([1.0, 0.3, 5.0])),
        reduction=draw(st.sampled_from(["examples", "terms"])),
    )
    if axis == -1:
        logits = logits.movedim(1, -1)
        targets = targets.movedim(1, -1) if targets.is_floating_point() else targets
    return Instance(likelihood, logits, targets, loss)


@st.composite
def elementwise(draw) -> Instance:
    shape = (draw(st.integers(1, 3)), *draw(st.sampled_from([(), (1,), (3,), (2, 2)])))
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    outputs = 2 * torch.randn(shape, generator=g, dtype=torch.float64)
    settings = {
        "scale": draw(st.sampled_from([1.0, 0.3, 5.0])),
        "reduction": draw(st.sampled_from(["examples", "terms"])),
    }
    if draw(st.booleans()):
        targets = torch.rand(shape, generator=g, dtype=torch.float64)
        if draw(st.booleans()):
            targets = targets.round()

        def loss(outputs, targets):
            return F.binary_cross_entropy_with_logits(outputs, targets, reduction="sum")

        return Instance(Bernoulli(**settings), outputs, targets, loss)

    def squared(outputs, targets):
        return 0.5 * F.mse_loss(outputs, targets, reduction="sum")

    targets = torch.randn(shape, generator=g, dtype=torch.float64)
    return Instance(Gaussian(**settings), outputs, targets, squared)


laws = settings(max_examples=30, deadline=None, derandomize=True)
instances = st.one_of(categorical(), elementwise())


@laws
@given(instance=instances)
def test_nll_is_torchs_loss(instance):
    nll = instance.likelihood.nll(instance.outputs, instance.targets)
    assert_close(nll, instance.torch_nll(instance.outputs), 1e-13)


@laws
@given(instance=instances)
def test_residual_is_the_gradient(instance):
    gradient = torch.func.grad(lambda f: instance.torch_nll(f).sum())(instance.outputs)
    residual = instance.likelihood.residual(instance.outputs, instance.targets)
    assert_close(residual, gradient, 1e-13)


@laws
@given(instance=instances)
def test_hvp_is_the_hessian_and_the_factor_its_root(instance):
    hessian = instance.hessian()
    factor = instance.dense(instance.likelihood.factor_product)
    assert_close(instance.dense(instance.likelihood.hvp), hessian, 1e-12)
    assert_close(factor @ factor.T, hessian, 1e-12)


@laws
@given(instance=instances)
def test_a_batch_is_its_examples(instance):
    """Nothing is divided by N: every member treats the examples one by one."""
    likelihood, f, y = instance.likelihood, instance.outputs, instance.targets
    whole = [
        likelihood.nll(f, y),
        likelihood.residual(f, y),
        likelihood.hvp(f, y, f),
        likelihood.factor_product(f, y, f),
        likelihood.terms(y).double(),
    ]
    rows: list[list[Tensor]] = [[] for _ in whole]
    for i in range(len(f)):
        a, b = f[i : i + 1], y[i : i + 1]
        rows[0].append(likelihood.nll(a, b))
        rows[1].append(likelihood.residual(a, b))
        rows[2].append(likelihood.hvp(a, b, a))
        rows[3].append(likelihood.factor_product(a, b, a))
        rows[4].append(likelihood.terms(b).double())
    for all_at_once, one_by_one in zip(whole, rows, strict=True):
        assert_close(all_at_once, torch.cat(one_by_one), 1e-13)
    weight = sum(likelihood.weight(y[i : i + 1]) for i in range(len(y)))
    assert likelihood.weight(y) == weight


@laws
@given(instance=instances)
def test_the_draw_of_an_instance_fits_itself(instance):
    instance.likelihood.check(instance.outputs, instance.targets)


def _soft(shape, generator):
    return torch.rand(shape, generator=generator, dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("extra", [(), (4,), (2, 3)])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("ignore", [-100, 1, 255])
def test_cross_entropy_modules_keep_their_value(extra, soft, smoothing, ignore, generator):
    module = nn.CrossEntropyLoss(label_smoothing=smoothing, ignore_index=ignore)
    outputs = torch.randn(5, 3, *extra, generator=generator, dtype=torch.float64)
    if soft:
        targets = _soft(outputs.shape, generator)
        module.ignore_index = -100  # torch takes no other with soft targets
    else:
        targets = torch.randint(0, 3, (5, *extra), generator=generator)
        targets.flatten()[::3] = ignore
    likelihood = as_likelihood(module)
    value = likelihood.nll(outputs, targets).sum() / likelihood.weight(targets)
    assert_close(value, module(outputs, targets), 1e-13)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 2, 3)])
@pytest.mark.parametrize("module", [nn.BCEWithLogitsLoss(), nn.MSELoss()])
def test_elementwise_modules_keep_their_value(module, shape, generator):
    outputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = torch.rand(shape, generator=generator, dtype=torch.float64)
    likelihood = as_likelihood(module)
    value = likelihood.nll(outputs, targets).sum() / likelihood.weight(targets)
    assert_close(value, module(outputs, targets), 1e-13)


def test_names_mean_the_mean_over_examples_summed_over_outputs(generator):
    f = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    y = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    gaussian = as_likelihood("gaussian")
    value = gaussian.nll(f, y).sum() / gaussian.weight(y)
    assert_close(value, (f - y).square().sum() / (2 * 5), 1e-14)
    bernoulli = as_likelihood("bernoulli")
    value = bernoulli.nll(f, y).sum() / bernoulli.weight(y)
    assert_close(value, 3 * F.binary_cross_entropy_with_logits(f, y), 1e-14)
    tokens = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (5, 4), generator=generator)
    categorical = as_likelihood("categorical")
    value = categorical.nll(tokens, labels).sum() / categorical.weight(labels)
    assert_close(value, 4 * F.cross_entropy(tokens.flatten(0, 1), labels.flatten()), 1e-14)


def test_a_mean_squared_error_is_two_over_c_of_the_gaussian():
    likelihood = as_likelihood(nn.MSELoss())
    assert isinstance(likelihood, Gaussian)
    assert (likelihood.scale, likelihood.reduction) == (2.0, "terms")


def test_likelihoods_pass_through():
    likelihood = Categorical(scale=3.0)
    assert as_likelihood(likelihood) is likelihood


@pytest.mark.parametrize("axis", [-1, 1])
def test_accuracy_counts_positions(axis):
    outputs = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 5.0]]])
    labels = torch.tensor([[1, 2], [-100, 2]])
    soft = F.one_hot(labels.clamp(min=0), 3).float()
    if axis == 1:
        outputs, soft = outputs.movedim(-1, 1), soft.movedim(-1, 1)
    likelihood = Categorical(axis=axis)
    assert likelihood.correct(outputs, labels).tolist() == [1.0, 1.0]
    assert likelihood.terms(labels).tolist() == [2.0, 1.0]
    assert likelihood.correct(outputs, soft).tolist() == [1.0, 2.0]
    assert likelihood.terms(soft).tolist() == [2.0, 2.0]


def test_accuracy_of_the_others():
    outputs = torch.tensor([[1.0, -1.0, 2.0]])
    right = Bernoulli().correct(outputs, torch.tensor([[1.0, 1.0, 0.7]]))
    assert right.tolist() == [2.0]
    assert Gaussian().correct(outputs, outputs) is None


@pytest.mark.parametrize("ignore", [-100, 0, 2, 255])
def test_ignored_positions_are_no_part_of_anything(ignore, generator):
    """A class may itself be the ignored index, as padding tokens are; so may a far number."""
    likelihood = Categorical(ignore_index=ignore, reduction="terms")
    f = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    f[0] = torch.tensor([9.0, 0.0, 0.0]) if ignore == 0 else torch.tensor([0.0, 0.0, 9.0])
    y = torch.tensor([ignore, 1, ignore, 1])
    assert likelihood.weight(y) == 2.0
    assert likelihood.correct(f, y).tolist()[::2] == [0.0, 0.0]
    for part in (
        likelihood.nll(f, y),
        likelihood.residual(f, y),
        likelihood.hvp(f, y, f),
        likelihood.factor_product(f, y, f),
        likelihood.fisher_sample(f, y, generator),
    ):
        assert float(part[::2].abs().max()) == 0.0
        assert float(part[1::2].abs().min()) > 0.0
    assert likelihood.sample(f, y, generator).tolist()[::2] == [ignore, ignore]


def test_normalisers_are_exact_beyond_single_precision():
    many = torch.zeros(()).expand(20001, 1001)
    assert Gaussian(reduction="terms").weight(many) == 20001 * 1001
    labels = torch.zeros((), dtype=torch.int64).expand(20001, 1001)
    assert Categorical(reduction="terms").weight(labels) == 20001 * 1001
    assert Gaussian().weight(many) == 20001


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Gaussian()])
def test_says_what_it_is(likelihood):
    rebuilt = eval(repr(likelihood))
    assert vars(rebuilt) == vars(likelihood)
    assert likelihood.name == type(likelihood).__name__.lower()


@pytest.mark.parametrize("kind", [Categorical, Bernoulli, Gaussian])
@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scales_that_are_none_are_refused(kind, scale):
    with pytest.raises(ValueError, match="scale must be positive"):
        kind(scale=scale)


def test_settings_that_are_none_are_refused():
    for smoothing in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="label_smoothing must lie"):
            Categorical(label_smoothing=smoothing)
    with pytest.raises(ValueError, match="axis of the classes"):
        Categorical(axis=2)
    with pytest.raises((ValueError, TypeError)):
        Gaussian(reduction="mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("poisson", "unknown likelihood 'poisson'.*bernoulli.*categorical.*gaussian"),
        (nn.CrossEntropyLoss(reduction="sum"), "CrossEntropyLoss.*reduction='sum'"),
        (nn.MSELoss(reduction="none"), "MSELoss.*reduction='none'"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "weight=.*not supported"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(3)), "weight=.*not supported"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), "pos_weight=.*not supported"),
    ],
)
def test_losses_without_a_likelihood_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        as_likelihood(given)


@pytest.mark.parametrize("given", [nn.NLLLoss(), nn.L1Loss(), nn.CrossEntropyLoss, 3, None])
def test_what_is_no_likelihood_is_refused(given):
    with pytest.raises(TypeError):
        as_likelihood(given)
