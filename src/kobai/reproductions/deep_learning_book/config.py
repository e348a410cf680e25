"""What the gallery is made with."""

import dataclasses

from kobai.reproductions.figures import Scale, check_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A guided tour of optimization for deep models: one page a section, all from computations."""

    scale: Scale = "full"
    """quick: under two minutes; full: under ten, on two cores."""
    figure: str = "all"
    """Sections to make, separated by commas (8.1.1, …, 8.7.6), or all."""
    data: str = "digits"
    """Data of the pages that train a network: digits, mnist, or any classification, also
    folder:PATH, PATH.npz and package.module:factory."""
    model: str = ""
    """Network of the pages that train just any one: mlp, cnn, …, or package.module:factory; empty:
    each page's own."""
    seed: int = 0
    """Seed of everything random (an integer, 0 or more)."""
    threads: int | None = None
    """Threads for computing (count); default: as many as there are cores."""

    def __post_init__(self) -> None:
        check_config(self)

    def pick(self, quick: int, full: int) -> int:
        """The number that belongs to the scale."""
        return quick if self.scale == "quick" else full

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs that are repeated: two at quick, five at full scale."""
        return tuple(range(self.seed, self.seed + self.pick(2, 5)))
