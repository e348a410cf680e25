"""Curvature of a data set that is spread over the processes of torch.distributed."""

from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from kobai.linalg import LinearOperator


@final
class Sharded(LinearOperator):
    """Σ_r W_r A_r / Σ_r W_r over the ranks r: the matrix of all data from those of the shards.

    Every rank builds its matrix (Hessian, Gauss-Newton, Fisher) on its own share of the data and
    multiplies the same vectors; one all-reduce of the product's size follows. Sampled labels need a
    generator of its own on each rank.

    Args:
        operator: This rank's symmetric matrix, normalised by its own weight.
        weight: That weight, ``objective.weight``.
        group: The processes; default: all.

    Raises:
        RuntimeError: If torch.distributed is not initialised.
        ValueError: If the operator is not declared symmetric.
    """

    def __init__(
        self, operator: LinearOperator, weight: float, group: dist.ProcessGroup | None = None
    ) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                "a sharded operator needs torch.distributed; call init_process_group (torchrun)"
            )
        if not operator.symmetric:
            raise ValueError(f"only symmetric matrices add up over shards; got {operator!r}")
        self.operator = operator
        self._group = group
        total = torch.tensor([weight], dtype=torch.float64, device=operator.device)
        dist.all_reduce(total, group=group)
        self.share = weight / float(total)
        super().__init__(
            operator.shape,
            dtype=operator.dtype,
            device=operator.device,
            symmetric=True,
            positive_semidefinite=operator.positive_semidefinite,
        )

    def _matmat(self, columns: Tensor) -> Tensor:
        product = (self.share * (self.operator @ columns)).contiguous()
        dist.all_reduce(product, group=self._group)
        return product

    def _adjoint(self) -> LinearOperator:
        return self
