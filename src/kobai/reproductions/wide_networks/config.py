"""What the figures of the wide-network source are made with."""

import dataclasses

from kobai.reproductions.figures import Scale, check_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The geometry of wide networks: learning rates, natural gradients, augmentation."""

    scale: Scale = "quick"
    """quick: every figure in minutes; full: 4 to 10 minutes of one core a figure."""
    figure: str = "all"
    """Figures to make, separated by commas (1, 2, 3, 4, 5), or all."""
    seed: int = 0
    """First seed (an integer, 0 or more)."""
    threads: int | None = None
    """Threads for computing (count); default: as many as there are cores."""

    def __post_init__(self) -> None:
        check_config(self)
