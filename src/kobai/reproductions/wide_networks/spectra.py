"""Spectra of the Fisher matrices of networks in a stack, also with normalised outputs.

The Jacobian of normalised outputs is P J with P block-diagonal, over outputs for normalisations
over the batch and over examples for LayerNorm; its Gram matrix is P K Pᵀ.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from kobai.kernels import ntk
from kobai.problem import EmpiricalRisk, Problem
from kobai.reproductions.wide_networks.stacked import OutputNormalization, Stack

_MODULES = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "hard-tanh": nn.Hardtanh,
}
_DENSE = 700


def module_of(
    stack: Stack, cell: int, *, variances: tuple[float, float] | None = None
) -> nn.Sequential:
    """One network of a stack as a module.

    Args:
        stack: The stack.
        cell: Which.
        variances: σ_w² and σ_b² for the same function in the NTK parameterisation; default: the
            standard one.

    Returns:
        Linear layers and activations, with copies of the parameters.
    """
    parts: list[nn.Module] = []
    for i, w in enumerate(stack.weights):
        parts += _layer(w[cell], stack.biases[i][cell] if stack.biases else None, variances)
        if i < len(stack.weights) - 1:
            parts.append(_MODULES[stack.activation]())
    return nn.Sequential(*parts)


class _Scaled(nn.Module):
    """[√(σ_w²/M) h; σ_b]: what a layer of the NTK parameterisation multiplies its weights with."""

    def __init__(self, weight_scale: float, bias_scale: float) -> None:
        super().__init__()
        self.scales = weight_scale, bias_scale

    def forward(self, h: Tensor) -> Tensor:
        """Append the bias' column."""
        return F.pad(self.scales[0] * h, (0, 1), value=self.scales[1])


def _layer(
    weight: Tensor, bias: Tensor | None, variances: tuple[float, float] | None
) -> list[nn.Module]:
    """One layer: plain, or in the NTK parameterisation with the bias as one more column."""
    units, fan_in = weight.shape
    if variances is None:
        parts: list[nn.Module] = []
        layer = nn.Linear(fan_in, units, bias=bias is not None, dtype=weight.dtype, device="meta")
    else:
        scales = (variances[0] / fan_in) ** 0.5, variances[1] ** 0.5
        shift = weight.new_zeros(units) if bias is None else bias / (scales[1] or 1.0)
        weight, bias = torch.cat([weight / scales[0], shift[:, None]], 1), None
        parts = [_Scaled(*scales)]
        layer = nn.Linear(fan_in + 1, units, bias=False, dtype=weight.dtype, device="meta")
    layer = layer.to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return [*parts, layer]


def objective_of(
    module: nn.Module, x: Float[Tensor, "N d"], y: Tensor, likelihood: str = "gaussian"
) -> EmpiricalRisk:
    """The mean loss of a module over some examples, as an objective.

    Args:
        module: The network.
        x: Inputs.
        y: Targets.
        likelihood: ``gaussian`` or ``categorical``.

    Returns:
        The objective.
    """
    return Problem(module, likelihood, train=(x, y)).objective()


def dual(
    module: nn.Module,
    x: Float[Tensor, "N d"],
    *,
    normalization: OutputNormalization = "none",
) -> Float[np.ndarray, "C N C N"]:
    """J Jᵀ/N of the outputs, after their normalisation, outputs before examples.

    Args:
        module: The network, without the normalisation.
        x: N inputs.
        normalization: Of the outputs.

    Returns:
        The matrix, whose non-zero eigenvalues are those of the Fisher matrix for ½‖f − y‖².
    """
    with torch.no_grad():
        f = module(x)
    n = len(f)
    kernel = ntk(objective_of(module, x, torch.zeros_like(f)))
    matrix = kernel.double().div_(n).permute(1, 0, 3, 2).numpy()
    return _normalized(matrix, f.double().numpy(), normalization)


def _normalized(matrix: np.ndarray, f: np.ndarray, normalization: str) -> np.ndarray:
    """P K Pᵀ."""
    n, c = f.shape
    if normalization == "none":
        return matrix
    if normalization == "layer":
        centred = f - f.mean(1, keepdims=True)
        spread = np.sqrt((centred**2).mean(1, keepdims=True))
        v = centred / spread
        project = (np.eye(c) - 1 / c - v[:, :, None] * v[:, None] / c) / spread[:, :, None]
        half = np.einsum("nak,knlm->anlm", project, matrix, optimize=True)
        return np.einsum("anlm,mbl->anbm", half, project, optimize=True)
    centred = matrix - matrix.mean(1, keepdims=True)
    centred = centred - centred.mean(3, keepdims=True)
    if normalization == "mean":
        return centred
    v = f - f.mean(0)
    spread = np.sqrt((v**2).mean(0))
    v = (v / spread).T
    scaled = centred / spread[:, None, None, None] / spread[None, None, :, None]
    scaled = scaled - v[:, :, None, None] * np.einsum("kn,knlm->klm", v, scaled)[:, None] / n
    return scaled - np.einsum("knlm,lm->knl", scaled, v)[..., None] * v[None, None] / n


def top_eigenvalues(matrix: Float[np.ndarray, "C N C N"], count: int) -> Float[np.ndarray, " k"]:
    """The largest eigenvalues of a dual, ascending.

    Args:
        matrix: From `dual`.
        count: How many.

    Returns:
        (count,) values.
    """
    rows = matrix.shape[0] * matrix.shape[1]
    square = matrix.reshape(rows, rows)
    square = (square + square.T) / 2
    if rows <= _DENSE or count >= rows - 1:
        return np.linalg.eigvalsh(square)[-count:]
    start = np.random.default_rng(0).standard_normal(rows)
    return np.sort(eigsh(square, k=count, which="LA", v0=start, return_eigenvectors=False))
