"""Stacked training agrees with networks trained one by one by torch.optim; duals with Jacobians."""

import numpy as np
import pytest
import torch
from torch import nn

from kobai import seeds
from kobai.reproductions.wide_networks.input_metric import input_metric
from kobai.reproductions.wide_networks.online import (
    conditional_spectra,
    draw_orthogonal,
    learn_online,
)
from kobai.reproductions.wide_networks.spectra import dual, module_of, top_eigenvalues
from kobai.reproductions.wide_networks.stacked import descend, draw, normalize
from kobai.theory import WideNetwork, hard_tanh_critical_line, isometry_spectrum

KINDS = ("none", "mean", "batch", "layer")


def problem(activation="tanh", cells=3, examples=7):
    network = WideNetwork(
        widths=(4, 6, 5, 3), activation=activation, weight_variance=1.5, bias_variance=0.1
    )
    streams = [seeds.generator(s, "stack") for s in range(cells)]
    stack = draw(network, generators=streams, dtype=torch.float64)
    x = torch.stack([torch.randn(examples, 4, generator=g, dtype=torch.float64) for g in streams])
    y = torch.stack([torch.randn(examples, 3, generator=g, dtype=torch.float64) for g in streams])
    return stack, x, y


class Normalized(nn.Module):
    """A network with its outputs normalised by torch's own layers."""

    def __init__(self, body, kind, outputs):
        super().__init__()
        self.body, self.kind = body, kind
        self.batch = nn.BatchNorm1d(outputs, affine=False, eps=1e-14, dtype=torch.float64)
        self.layer = nn.LayerNorm(outputs, elementwise_affine=False, eps=1e-14)

    def forward(self, x):
        f = self.body(x)
        if self.kind == "mean":
            return f - f.mean(0)
        return {"none": lambda f: f, "batch": self.batch, "layer": self.layer}[self.kind](f)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_every_cell_is_the_network_trained_alone(kind, activation):
    stack, x, y = problem(activation)
    rates = torch.tensor([0.02, 0.1, 0.3], dtype=torch.float64)
    found = descend(stack, x, y, rates, steps=12, normalization=kind)
    for cell in range(3):
        model = Normalized(module_of(stack, cell), kind, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=float(rates[cell]))
        losses = []
        for step in range(13):
            loss = (model(x[cell]) - y[cell]).square().sum(1).mean() / 2
            losses.append(loss.item())
            if step < 12:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        assert np.allclose(found.losses[cell], losses, rtol=1e-8, atol=0)
        end = nn.utils.parameters_to_vector(model.parameters()).detach()
        own = nn.utils.parameters_to_vector(module_of(found.stack, cell).parameters()).detach()
        assert torch.allclose(own, end, rtol=1e-8, atol=1e-10)


def test_lost_cells_leave_the_others_alone():
    stack, x, y = problem("relu", cells=4)
    calm = torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=torch.float64)
    wild = calm.clone()
    wild[[1, 3]] = 50.0
    one = descend(stack, x, y, calm, steps=20)
    two = descend(stack, x, y, wild, steps=20)
    assert torch.equal(two.losses[[0, 2]], one.losses[[0, 2]])
    assert bool(two.losses[[1, 3], -1].isinf().all())
    assert bool(two.losses[[1, 3], 0].isfinite().all())
    for own, other in zip(two.stack.tensors, one.stack.tensors, strict=True):
        assert torch.equal(own[[0, 2]], other[[0, 2]])


def test_all_cells_lost_is_a_result():
    stack, x, y = problem("relu")
    found = descend(stack, x, y, torch.full((3,), 1e3, dtype=torch.float64), steps=10)
    assert bool(found.losses[:, -1].isinf().all())


@pytest.mark.parametrize("kind", KINDS)
def test_dual_is_the_jacobian_of_the_normalised_outputs(kind):
    stack, x, _ = problem("tanh")
    module = module_of(stack, 1)
    parameters = dict(module.named_parameters())
    rows = torch.func.jacrev(
        lambda p: normalize(torch.func.functional_call(module, p, (x[1],)), kind)
    )(parameters)
    jacobian = torch.cat([r.flatten(2) for r in rows.values()], 2).transpose(0, 1)
    expected = torch.einsum("knp,lmp->knlm", jacobian, jacobian).detach() / 7
    found = dual(module, x[1], normalization=kind)
    assert np.allclose(found, expected, atol=1e-10)
    square = expected.reshape(21, 21).numpy()
    assert np.allclose(top_eigenvalues(found, 2), np.linalg.eigvalsh(square)[-2:], atol=1e-10)


def test_the_ntk_parameterisation_is_the_same_function_with_its_own_kernel():
    stack, x, _ = problem("relu")
    plain, scaled = module_of(stack, 0), module_of(stack, 0, variances=(1.5, 0.1))
    assert torch.allclose(plain(x[0]), scaled(x[0]))
    # Last layer: features times σ_w²/M plus σ_b², against features plus 1.
    kernels = [
        torch.func.jacrev(
            lambda w, m=m, name=name: torch.func.functional_call(m, {name: w}, (x[0],))
        )(dict(m.named_parameters())[name]).flatten(2)
        for m, name in ((plain, "4.weight"), (scaled, f"{len(scaled) - 1}.weight"))
    ]
    feature = torch.einsum("nkp,mkp->nm", kernels[0], kernels[0]) / 3
    expected = feature * 1.5 / 5 + 0.1
    found = torch.einsum("nkp,mkp->nm", kernels[1], kernels[1]) / 3
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("activation", ["linear", "hard-tanh"])
def test_online_steps_are_those_of_sgd(activation):
    g = [seeds.generator(s, "online") for s in range(2)]
    stack = draw_orthogonal(
        4, 5, weight_variance=1.1, bias_variance=0.05, activation=activation, generators=g,
        dtype=torch.float64,
    )  # fmt: skip
    x = torch.randn(2, 9, 5, generator=g[0], dtype=torch.float64)
    y = torch.randn(2, 9, 5, generator=g[0], dtype=torch.float64)
    rates = torch.tensor([0.03, 0.05], dtype=torch.float64)
    start = stack.select(torch.arange(2))
    run = learn_online(stack, x, y, torch.arange(2), rates, early=3)
    for cell in range(2):
        model = module_of(start, cell)
        for name, p in model.named_parameters():
            p.requires_grad_("weight" in name)
        weights = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(weights, lr=float(rates[cell]))
        for step in range(9):
            loss = (model(x[cell, step]) - y[cell, step]).square().sum() / 2
            assert float(run.losses[cell, step]) == pytest.approx(loss.item(), rel=1e-9)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step < 3:
                after = (model(x[cell, step]) - y[cell, step]).square().sum() / 2
                assert float(run.ratios[cell, step]) == pytest.approx(
                    (after / loss).item(), rel=1e-9
                )
        for own, part in zip(run.stack.weights, weights, strict=True):
            assert torch.allclose(own[cell], part, atol=1e-12)


def test_orthogonal_and_the_conditional_spectrum():
    line = hard_tanh_critical_line(0.15)
    g = [seeds.generator(0, "spectrum")]
    stack = draw_orthogonal(
        6, 40, weight_variance=line.weight_variance, bias_variance=line.bias_variance,
        activation="hard-tanh", generators=g, dtype=torch.float64,
    )  # fmt: skip
    w = stack.weights[2][0]
    eye = line.weight_variance * torch.eye(40, dtype=torch.float64)
    assert torch.allclose(w @ w.T, eye, atol=1e-12)
    x = torch.randn(1, 40, generator=g[0], dtype=torch.float64) * line.feature**0.5
    values, levels = conditional_spectra(stack, x)
    module = module_of(stack, 0)
    rows = torch.func.jacrev(lambda p: torch.func.functional_call(module, p, (x[0],)))(
        {name: p.detach() for name, p in module.named_parameters() if "weight" in name}
    )
    jacobian = torch.cat([r.flatten(1) for r in rows.values()], 1)
    exact = torch.linalg.eigvalsh(jacobian @ jacobian.T) / 40
    assert torch.allclose(values[0], exact, atol=1e-10)
    said = isometry_spectrum(
        "hard-tanh", depth=6, width=40, weight_variance=line.weight_variance,
        bias_variance=line.bias_variance, features=levels[:, 0].numpy(),
    )  # fmt: skip
    # Exact given the network's own features while the atom survives.
    assert float(values[0, -1]) == pytest.approx(said.largest, rel=1e-6)


def test_the_input_metric_is_that_of_the_jacobian():
    stack, x, _ = problem("tanh")
    module = module_of(stack, 2)
    rows = torch.func.vmap(torch.func.jacrev(module))(x[2])
    expected = torch.einsum("nka,nkb->ab", rows, rows).detach() / 7
    values, vectors = input_metric(module, x[2])
    assert torch.allclose((vectors * values) @ vectors.T, expected, atol=1e-12)
