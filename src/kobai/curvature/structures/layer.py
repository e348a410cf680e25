"""Fisher structure "layer": the full block of every layer, nothing between layers."""

from typing import final

import torch

from kobai.curvature.coverage import Coverage
from kobai.curvature.rows import Rows, Stacked
from kobai.curvature.rows.network import ScoreRows
from kobai.curvature.structures.interface import Structure, covered_layer, layers_of
from kobai.curvature.structures.low_rank import LowRank
from kobai.linalg.operators.blocks import BlockDiagonal
from kobai.linalg.operators.leaves import Dense
from kobai.linalg.operators.solvable import SolvableOperator


@final
class LayerStructure(Structure):
    """Blocks F_ll = G_lᵀ G_l / W, each kept on its smaller side.

    A layer with fewer parameters than there are rows (examples times cotangents) is a dense matrix;
    a larger one keeps its captured inputs and gradients and is solved by an R × R system.
    """

    def coverage(self, source: ScoreRows) -> Coverage:
        """One line a layer."""
        return Coverage(covered_layer(source, layer, "layer") for layer in layers_of(source))

    def build(self, source: ScoreRows) -> SolvableOperator:
        """Block-diagonal over the layers."""
        layers = layers_of(source)
        weight = source.objective.weight
        small = {i for i, layer in enumerate(layers) if layer.size <= source.count}
        sums = {i: source.theta.new_zeros(layers[i].size, layers[i].size) for i in small}
        kept: dict[int, list[Rows]] = {i: [] for i in range(len(layers)) if i not in small}
        indices: dict[int, torch.Tensor] = {}
        for parts in source:
            for i, layer in enumerate(layers):
                rows = layer.rows(parts)
                indices[i] = rows.indices
                if i in small:
                    matrix = rows.dense()
                    sums[i] += matrix.T @ matrix
                else:
                    kept[i].append(rows)
        blocks: list[SolvableOperator] = [
            Dense(sums[i] / weight, positive_semidefinite=True)
            if i in small
            else LowRank(Stacked(kept[i]), weight, source.theta)
            for i in range(len(layers))
        ]
        return BlockDiagonal(blocks, [indices[i] for i in range(len(layers))])
