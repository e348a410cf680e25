"""The processes that share a grid."""

from typing import Any, final

import torch.distributed as dist


@final
class Processes:
    """The processes that share a grid: those of torch.distributed, or this one alone.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    def agree(self, value: Any) -> Any:
        """Give every process the value that the first one has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Give every process the values of all, in their order."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box
