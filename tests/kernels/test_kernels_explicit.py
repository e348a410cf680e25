"""Natural kernels against P × P matrices made from the network's own formulas and torch.func."""

import pytest
import torch
from test_kernels_ntk import dense_jacobian
from torch import nn
from wide_nets import inputs_of, wide_risk

from kobai import Problem
from kobai.kernels import natural_kernel
from tolerances import assert_close

DAMPING = 1e-3
METHODS = ["full", "layer", "tridiagonal", "kronecker", "unit", "diagonal"]


def places(risk):
    """Layer and unit of every parameter: weights of a layer, row by row, then its biases."""
    layers, units = [], []
    for i, layer in enumerate(m for m in risk.model if isinstance(m, nn.Linear)):
        own = torch.arange(layer.out_features)
        units += [own.repeat_interleave(layer.in_features), own]
        layers.append(torch.full((layer.weight.numel() + layer.out_features,), i))
    return torch.cat(layers), torch.cat(units)


def explicit(risk, structure):
    """The damped matrix, (P, P), from the dense Jacobian alone; and the undamped one."""
    jacobian, n = dense_jacobian(risk), risk.size
    layers, units = places(risk)
    fisher = jacobian.T @ jacobian / n
    apart = (layers.unsqueeze(0) - layers.unsqueeze(1)).abs()
    masks = {
        "full": torch.ones_like(fisher, dtype=torch.bool),
        "layer": apart == 0,
        "tridiagonal": apart <= 1,
        "unit": (apart == 0) & (units.unsqueeze(0) == units.unsqueeze(1)),
        "diagonal": torch.eye(len(fisher), dtype=torch.bool),
    }
    eye = torch.eye(len(fisher), dtype=fisher.dtype)
    if structure != "kronecker":
        fisher = torch.where(masks[structure], fisher, 0.0)
        return fisher + DAMPING * eye, fisher
    damped, plain = torch.zeros_like(fisher), torch.zeros_like(fisher)
    h, start = inputs_of(risk), 0
    for module in risk.model:
        if not isinstance(module, nn.Linear):
            h = module(h)
            continue
        rows, columns = module.weight.shape
        inputs = torch.cat([h, torch.ones_like(h[:, :1])], 1).detach()
        stop = start + rows * (columns + 1)
        # The gradient in a bias is the gradient in its unit's pre-activation.
        delta = jacobian[:, stop - rows : stop]
        a, b = inputs.T @ inputs / n, delta.T @ delta / n
        # (unit, input) order against torch's: weights first, then biases.
        order = torch.arange(rows * (columns + 1)).view(rows, columns + 1)
        order = torch.cat([order[:, :columns].flatten(), order[:, columns]])
        own = slice(start, stop)
        plain[own, own] = torch.kron(b, a)[order][:, order]
        a, b = (factor + DAMPING * torch.eye(len(factor)).double() for factor in (a, b))
        damped[own, own] = torch.kron(b, a)[order][:, order]
        h, start = module(h), stop
    return damped, plain


@pytest.mark.parametrize("structure", METHODS)
def test_function_space_is_the_explicit_solve(structure):
    """Theory's row 3a: widths 4-5-6-5-2, erf, damping 1e-3, on training and other points."""
    risk = wide_risk((4, 5, 6, 5, 2), "erf", 7, ntk=False)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    others = Problem(risk.model, "gaussian", train=(x, torch.zeros(3, 2).double())).objective()
    jacobian = dense_jacobian(risk)
    damped, plain = explicit(risk, structure)
    solved = torch.linalg.solve(damped, jacobian.T) / risk.size
    for x1, rows in ((None, jacobian), (x, dense_jacobian(others))):
        found = natural_kernel(risk, structure, DAMPING, x1).flatten(2).flatten(0, 1)
        assert_close(found, rows @ solved, 1e-8)
    least = float(torch.linalg.eigvalsh(plain)[0])
    assert least < -0.1 if structure == "tridiagonal" else least > -1e-12


@pytest.mark.parametrize("phi", ["erf", "relu"])
@pytest.mark.parametrize(
    "widths", [(64, 256), pytest.param((64, 256, 1024), marks=pytest.mark.slow)]
)
def test_entries_are_isotropic_at_no_width(phi, widths):
    """Theory's row 3b: the entry-wise kernel stays away from α I in the spectral norm."""
    errors = [_error("diagonal", (40, m, m, 1), phi)[1] for m in widths]
    assert min(errors) > 0.5
    assert errors[-1] > 0.8 * errors[0]


@pytest.mark.parametrize(
    ("phi", "outputs"), [("erf", 2), pytest.param("relu", 1, marks=pytest.mark.slow)]
)
def test_units_become_isotropic_with_the_width(phi, outputs):
    """Theory's row 3b: α within 3 % at the largest width, and errors that fall.

    Not at theory's width of 1,024: the blocks of its units take 17 GB.
    """
    widths = (64, 256)
    found = [_error("unit", (40, m, m, outputs), phi) for m in widths]
    errors = [error for _, error in found]
    assert errors == sorted(errors, reverse=True)
    share = 0.5 if phi == "relu" else 1.0
    assert found[-1][0] == pytest.approx(share * 2 * widths[-1] / outputs + 1, rel=0.03)


def _error(structure, widths, phi):
    """α, and ‖K̄/α − I‖₂."""
    kernel = natural_kernel(wide_risk(widths, phi, 20, ntk=False), structure)
    matrix = kernel.flatten(2).flatten(0, 1)
    alpha = float(matrix.diagonal().mean())
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    return alpha, float(torch.linalg.matrix_norm(matrix / alpha - eye, 2))
