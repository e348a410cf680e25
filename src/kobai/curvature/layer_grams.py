"""Layer Grams: K_l = J_l J_lᵀ of every layer, and the spectra that follow from their sum.

They hold the inner products of gradients, one row per example and output. Their sum over layers is
the neural tangent kernel of a network, and over W the Fisher matrix's dual, with the same non-zero
eigenvalues. Layers of a known kind never form J_l; see `kobai.curvature.rows.outer_products` for
the orders of contraction.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.rows import Joined, Stacked
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.scores import Labels, Scores
from kobai.curvature.structures.interface import layers_of
from kobai.linalg.factor import eigh
from kobai.problem import EmpiricalRisk


def layer_grams(
    objective: EmpiricalRisk,
    other: EmpiricalRisk | None = None,
    *,
    theta: Float[Tensor, " P"] | None = None,
    labels: Labels | Literal["outputs"] = "outputs",
) -> dict[str, Float[Tensor, "R S"]]:
    """K_l of every layer, not divided by anything; rows follow the examples, then the outputs.

    Args:
        objective: The network and the examples of the rows.
        other: The same network and the examples of the columns; default: the same examples.
        theta: Where; default: the module's parameters now.
        labels: "outputs": rows are gradients of the outputs, as in `Jacobian`. "exact": gradients
            along the columns of a factor of the output Hessian, whose Gram has the spectrum of
            W F; "observed": gradients of the losses. See `Scores` ("sampled" is not offered here).

    Returns:
        One matrix per layer, by the layer's name, in the order of the parameters.
        Cost: as many backward passes as an example has outputs, and the contractions; memory R S
        numbers per layer and the captured inputs and gradients.

    Raises:
        ValueError: If the two objectives belong to different modules.
    """
    if labels == "sampled":
        raise ValueError("layer Grams take labels 'outputs', 'exact' or 'observed', got 'sampled'")
    source, rows = _layer_rows(objective, theta, labels)
    if other is None:
        return {name: own.gram() for name, own in rows.items()}
    if other.space.module is not objective.space.module:
        raise ValueError("both objectives must belong to one module")
    second, columns = _layer_rows(other, theta, labels)
    if [p.kind for p in source.parts] != [p.kind for p in second.parts]:
        raise ValueError("the layers are called differently on the two data sets")
    return {name: own.gram(columns[name]) for name, own in rows.items()}


def dual_eigenvalues(
    objective: EmpiricalRisk,
    *,
    theta: Float[Tensor, " P"] | None = None,
    labels: Labels = "exact",
) -> Float[Tensor, " R"]:
    """All non-zero eigenvalues of the Fisher matrix from its dual, ascending.

    The R × R matrix GGᵀ/W, R the number of rows (examples times outputs), has the spectrum of the
    P × P Fisher matrix up to zeros: one Gram matrix and one dense eigendecomposition where
    products would never finish.

    Args:
        objective: The network and data.
        theta: Where; default: the module's parameters now.
        labels: "exact" (equals the Gauss-Newton spectrum) or "observed".

    Returns:
        R values; if R > P, the R − P smallest are zero to rounding.
    """
    grams = layer_grams(objective, theta=theta, labels=labels)
    total = torch.stack(list(grams.values())).sum(0) / objective.weight
    return eigh(total).values


def _layer_rows(
    objective: EmpiricalRisk, theta: Tensor | None, labels: Labels | Literal["outputs"]
) -> tuple[ScoreRows, dict[str, Stacked]]:
    """The rows of each layer over all batches."""
    scores = Scores(likelihood=objective.likelihood, labels=labels)
    source = ScoreRows(objective, theta, scores)
    layers = layers_of(source)
    kept: dict[str, list[Joined]] = {layer.name: [] for layer in layers}
    for parts in source:
        for layer in layers:
            kept[layer.name].append(Joined([parts[i] for i in layer.positions]))
    return source, {name: Stacked(pieces) for name, pieces in kept.items()}
