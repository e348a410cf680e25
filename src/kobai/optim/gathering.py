"""Rows of examples joined across processes, so that all of them decide alike."""

import torch
import torch.distributed as dist
from torch import Tensor

from kobai.optim.distribution import ranks


def gathered(rows: Tensor) -> Tensor:
    """The rows of every process, in the order of ranks; its own where there is one process.

    Args:
        rows: Examples first; processes may have different numbers of them.

    Every process must call it.
    """
    if ranks() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(ranks())]
    dist.all_gather(counts, count)
    sizes = [int(one) for one in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    pieces = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])
