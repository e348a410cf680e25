"""Gradient rows of one example at a time: right for any module, and for recurrent ones quickest."""

from collections.abc import Iterator

import torch
from torch import Tensor

from kobai.curvature.rows import DenseRows, Rows
from kobai.curvature.rows.network import ScoreRows
from kobai.problem import pure


def jacobian_rows(source: ScoreRows) -> Iterator[list[Rows]]:
    """The rows of a source, written out: a forward pass an example, a backward pass a row.

    A layer that is not understood takes a backward pass over the *whole batch* for each row in the
    usual way; here each passes through its own example alone.

    Args:
        source: Rows of the outputs (labels "outputs"), of examples that do not depend on each
            other.

    Yields:
        For each batch the rows of every part, in the source's order.
    """
    objective = source.objective
    for batch in objective.batches:
        matrices: list[Tensor] = []
        for n in range(batch.size):
            with torch.enable_grad(), pure(objective.model):
                leaf = source.theta.detach().requires_grad_()
                outputs = objective.forward(leaf, batch.take(slice(n, n + 1))).reshape(-1)
            matrices += [
                torch.autograd.grad(output, leaf, retain_graph=True, materialize_grads=True)[0]
                for output in outputs
            ]
        matrix = torch.stack(matrices)
        yield [
            DenseRows(matrix[:, part.indices.to(matrix.device)], part.indices)
            for part in source.parts
        ]
