"""Spectral densities of a curvature matrix, or of its layers, as results to keep."""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg import LinearOperator, density
from kobai.problem import EmpiricalRisk
from kobai.results import SpectralDensity

FLOOR = 1e-6
"""Share of the largest |λ| below which eigenvalues count as zero: rounding in single precision."""


@final
class _LayerBlock(LinearOperator):
    """A diagonal block of a symmetric matrix, as products with the whole."""

    def __init__(self, matrix: LinearOperator, indices: Tensor) -> None:
        self._matrix, self._indices = matrix, indices.to(matrix.device)
        super().__init__(
            (indices.numel(), indices.numel()), dtype=matrix.dtype, device=matrix.device,
            symmetric=True, positive_semidefinite=matrix.positive_semidefinite,
        )  # fmt: skip

    def _matmat(self, columns: Tensor) -> Tensor:
        padded = columns.new_zeros(self._matrix.shape[0], columns.shape[1])
        padded[self._indices] = columns
        return (self._matrix @ padded)[self._indices]

    def _adjoint(self) -> LinearOperator:
        return self


def measure_density(
    matrix: LinearOperator,
    *,
    name: str,
    probes: int = 10,
    steps: int = 50,
    tolerance: float | int = 0.0,
    known: Sequence[float] | Float[Tensor, " k"] = (),
    classes: int = 0,
    points: int = 400,
    block: str = "",
    label: str = "",
    optimizer: str = "",
    seed: int | None = None,
    generator: torch.Generator,
) -> SpectralDensity:
    """The spectral density of a symmetric matrix on a log axis, with errors, as a result.

    Args:
        matrix: The matrix.
        name: What to call it.
        probes: Random vectors.
        steps: Lanczos steps of each.
        tolerance: L1 error of the density to stop at before that; 0: run all.
        known: Eigenvalues known one by one, which are marked and counted as outliers.
        classes: Number of outputs that outliers are counted against; 0: none.
        points: Size of the grid.
        block: The layer, where the matrix is a block.
        label: Name of the point.
        optimizer: Optimizer that led there.
        seed: Seed of that run.
        generator: Draws the probes.

    Returns:
        Densities per decade of positive and negative eigenvalues, and the share of negative ones
        with its sampling interval and with what the resolution leaves open. Cost: at most probes
        times steps products.
    """
    found = density(
        matrix,
        num_probes=probes,
        num_steps=steps,
        tolerance=float(tolerance),
        generator=generator,
    )
    weights = found.weights > 0
    sizes = found.nodes[weights].abs()
    largest = float(sizes.max()) if sizes.numel() else math.nan
    whole = math.isfinite(largest) and largest > 0
    floor = FLOOR * largest if whole else FLOOR
    top = math.log10(largest) if whole else 0.0
    # Nodes are dense at the ends only: in decades, one width for all is a compromise.
    width = 0.15
    grid = torch.linspace(top - 6 - 3 * width, top + 4 * width, points, dtype=torch.float64)
    sides = {
        part: found.curve(grid, scale="log", part=part, width=width, floor=floor)
        for part in ("positive", "negative")
    }
    share = found.negative_fraction(zero=floor)
    return SpectralDensity(
        label=label,
        matrix=name,
        block=block,
        dimension=found.dimension,
        grid=grid.numpy(),
        positive=sides["positive"].value.numpy(),
        positive_error=sides["positive"].standard_error.numpy(),
        negative=sides["negative"].value.numpy(),
        negative_error=sides["negative"].standard_error.numpy(),
        width=width,
        floor=floor,
        largest=float(found.nodes[weights].max()) if sizes.numel() else math.nan,
        smallest=float(found.nodes[weights].min()) if sizes.numel() else math.nan,
        negative_fraction=share.value,
        negative_low=share.low,
        negative_high=share.high,
        negative_bracket_low=share.bracket[0],
        negative_bracket_high=share.bracket[1],
        num_probes=found.nodes.shape[0],
        num_steps=found.nodes.shape[1],
        num_products=found.num_products,
        eigenvalues=torch.as_tensor(known, dtype=torch.float64).numpy(),
        classes=classes,
        status=found.status,
        optimizer=optimizer,
        seed=seed,
    )


def layer_densities(
    objective: EmpiricalRisk,
    matrix: LinearOperator,
    *,
    name: str,
    probes: int = 4,
    steps: int = 30,
    tolerance: float | int = 0.0,
    label: str = "",
    optimizer: str = "",
    seed: int | None = None,
    generator: torch.Generator,
) -> tuple[SpectralDensity, ...]:
    """The spectral density of each layer's diagonal block, in the order of the layers.

    Args:
        objective: The loss, whose module has the layers.
        matrix: The whole matrix.
        name: What to call it.
        probes: Random vectors a layer.
        steps: Lanczos steps of each.
        tolerance: L1 error of each density to stop at before that; 0: run all.
        label: Name of the point.
        optimizer: Optimizer that led there.
        seed: Seed of that run.
        generator: Draws the probes.

    Returns:
        One result a layer. Cost: layers times probes times steps products with the whole matrix.
    """
    return tuple(
        measure_density(
            _LayerBlock(matrix, block.indices),
            name=name,
            block=block.name,
            probes=probes,
            steps=steps,
            tolerance=tolerance,
            label=label,
            optimizer=optimizer,
            seed=seed,
            generator=generator,
        )
        for block in objective.space.blocks("layer")
    )
