"""Curvature of a data set that is spread over the processes of torch.distributed."""

from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from kobai.curvature.fisher import Fisher
from kobai.curvature.structures import ChainStructure, EKFACStructure, KroneckerStructure
from kobai.linalg import LinearOperator

_NOT_ADDITIVE = (ChainStructure, EKFACStructure, KroneckerStructure)


@final
class Sharded(LinearOperator):
    """Σ_r W_r A_r / Σ_r W_r over the ranks r: the matrix of all data from those of the shards.

    Every rank builds its matrix (Hessian, Gauss-Newton, Fisher) on its own share of the data and
    multiplies the same vectors; one all-reduce of the product's size follows. Sampled labels need a
    generator of its own on each rank. For matrices that are sums over examples: the structures
    "kronecker", "ekfac" and "chain" are not and are refused.

    Args:
        operator: This rank's symmetric matrix, normalised by its own weight.
        weight: That weight, ``objective.weight``.
        group: The processes; default: all.

    Raises:
        RuntimeError: If torch.distributed is not initialised.
        ValueError: If the operator is not declared symmetric or not a sum over examples.
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
        if isinstance(operator, Fisher) and isinstance(operator.structure, _NOT_ADDITIVE):
            raise ValueError(
                f"{type(operator.structure).__name__} of all data is not the mean of those of the "
                "shards; take structure 'full', 'layer', 'tridiagonal', 'unit' or 'diagonal'"
            )
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
