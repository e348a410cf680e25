"""The kernel of a network at one point, and its isotropy, as results to save and show."""

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.kernels.comparison import kernel_alignment
from kobai.kernels.natural.isotropy import isotropy
from kobai.kernels.tangent import ntk, ntk_plan
from kobai.linalg.factor import eigh
from kobai.linalg.operators.solvable import DampingForm
from kobai.problem import EmpiricalRisk
from kobai.results import IsotropyTable, TangentSummary

LARGEST = 4_000
"""Rows of the largest kernel whose eigenvalues are computed."""


def measure_kernel(
    objective: EmpiricalRisk,
    *,
    theta: Float[Tensor, " P"] | None = None,
    label: str = "",
    optimizer: str = "",
    seed: int | None = None,
) -> TangentSummary:
    """Spectrum, layer shares and label alignment of the tangent kernel of an objective's examples.

    Args:
        objective: The network and the examples; N C beyond `LARGEST` are summarised through the
            kernel summed over outputs.
        theta: Where; default: the module's parameters now.
        label: Of the result.
        optimizer: Of the result.
        seed: Of the result.

    Returns:
        The summary. Cost: one kernel a layer and a dense eigendecomposition.

    Raises:
        ValueError: If there are more than `LARGEST` examples; take fewer.
    """
    at = objective.theta() if theta is None else theta
    examples = objective.size
    if examples > LARGEST:
        raise ValueError(
            f"the kernel's spectrum takes at most {LARGEST} examples, got {examples}; measure on "
            "some of them"
        )
    values = objective.outputs(at)
    outputs = values[0].numel()
    kind = "full" if examples * outputs <= LARGEST else "trace"
    plan = ntk_plan(objective, outputs=kind, blocks="layer")
    layers = ntk(objective, outputs=kind, blocks="layer", theta=at)
    kernel = torch.stack(list(layers.values())).sum(0)
    flat = kernel.flatten(2).flatten(0, 1) if kind == "full" else kernel
    spectral = eigh(flat.double() / examples)
    traces = torch.stack(
        [
            (own.flatten(2).flatten(0, 1) if kind == "full" else own).diagonal().double().sum()
            for own in layers.values()
        ]
    )
    labels = _labels(objective, values)
    alignment = share = float("nan")
    if labels is not None:
        alignment = kernel_alignment(kernel, labels)
        share = _fast_share(objective, values, spectral.vectors, kind)
    top = float(spectral.values[-1])
    return TangentSummary(
        label=label, examples=examples, outputs=outputs, parameters=at.numel(), kind=kind,
        method=str(plan), eigenvalues=spectral.values.cpu().numpy(),
        learning_rate=2 / top if kind == "full" and top > 0 else float("nan"),
        alignment=alignment, residual_share=share, layers=tuple(layers),
        layer_shares=(traces / traces.sum()).cpu().numpy(), status=spectral.status,
        optimizer=optimizer, seed=seed,
    )  # fmt: skip


def measure_isotropy(
    objective: EmpiricalRisk,
    *,
    damping: float | int = 0.0,
    damping_form: DampingForm = "each",
    tolerance: float = 0.1,
    label: str = "",
    optimizer: str = "",
    seed: int | None = None,
) -> IsotropyTable:
    """The isotropy of every structure: `isotropy` without a structure, under a verb's name.

    Args:
        objective: The network and the examples, N C up to a few thousand.
        damping: λ.
        damping_form: See `kobai.kernels.natural_kernel`.
        tolerance: Spread that counts as isotropic.
        label: Of the result.
        optimizer: Of the result.
        seed: Of the result.
    """
    return isotropy(
        objective, None, damping, damping_form=damping_form, tolerance=tolerance, label=label,
        optimizer=optimizer, seed=seed,
    )  # fmt: skip


def _labels(objective: EmpiricalRisk, values: Tensor) -> Float[Tensor, "N C"] | None:
    """Targets as numbers of the outputs' shape, where each example has one label."""
    if values.ndim != 2:
        return None
    targets = torch.cat([batch.targets for batch in objective.batches]).to(values.device)
    return objective.likelihood.targets_as_outputs(values, targets)


def _fast_share(objective: EmpiricalRisk, values: Tensor, vectors: Tensor, kind: str) -> float:
    """Share of the squared residual in the top tenth of the kernel's eigenvectors."""
    targets = torch.cat([batch.targets for batch in objective.batches]).to(values.device)
    residual = objective.likelihood.residual(values, targets).double()
    columns = residual.reshape(-1, 1) if kind == "full" else residual
    total = float(columns.square().sum())
    count = max(1, vectors.shape[1] // 10)
    return float((vectors[:, -count:].T @ columns).square().sum()) / total if total else 0.0
