"""What the skip-connection tables are made with."""

import dataclasses
from typing import Literal

from kobai.reproductions.figures import Scale, check_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Natural gradient against SGD on deep networks with and without residual skips.

    The source does not say what the search maximised, what its validation set was, how long runs
    were, or the widths of "6 layers"; here it is training accuracy at the end, the data set's own
    test split, `epochs`, and 784-100-100-100-100-100-10.
    """

    scale: Scale = "quick"
    """quick: digits, 24 trials a cell, minutes; full: MNIST, 300 trials a cell, hours."""
    data: str = "auto"
    """digits, mnist, or auto: digits at quick scale, mnist at full scale."""
    figure: str = "all"
    """Figures to make, separated by commas (tables, mechanism, damping, convexity), or all."""
    seed: int = 0
    """Seed of the searches and of the networks (an integer, 0 or more)."""
    trials: int | None = None
    """Trials a cell (count); default: 24 at quick, 300 at full scale."""
    top: int | None = None
    """Best trials that count (count); default: a third of the trials."""
    epochs: float | None = None
    """Epochs of every run, the same for all; default: 10 at quick, 8 at full scale."""
    batches: tuple[int, ...] = ()
    """Two batch sizes (counts); default: 64 and all of digits, 256 and 8192 of mnist."""
    depth: int = 6
    """Layers; five of width 100 and an output layer in the source."""
    network: Literal["linear", "relu", "batch-norm"] = "linear"
    """What the layers are: linear as in the source, with ReLU, or with batch normalisation, too."""
    bias: bool = False
    """Learn biases."""
    damping: float | None = 0.01
    """K-FAC's damping (multiple of the identity); None: searched like the learning rate."""
    together: int | None = None
    """Trials a process asks for at once and trains as one computation (count); 0: 8 on a CPU where
    the network allows it; default: 1 at quick scale, where so many at once would be a random
    search, and 0 at full scale."""
    workers: int = 2
    """Processes to run trials in (count)."""
    threads: int | None = None
    """Threads of each (count); default: 1."""

    def __post_init__(self) -> None:
        check_config(self)
        if self.data not in ("auto", "digits", "mnist"):
            raise ValueError(f"data is 'digits', 'mnist' or 'auto'; got {self.data!r}")
        if len(self.batches) not in (0, 2):
            raise ValueError(f"batches are two sizes, a small and a large; got {self.batches}")
        for name in (
            "trials",
            "top",
            "epochs",
            "depth",
            "workers",
            "threads",
            "damping",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.together is not None and self.together < 0:
            raise ValueError(f"together must be 0 or more, got {self.together}")
        if self.depth < 3:
            raise ValueError(f"depth must be at least 3 for a layer with a skip, got {self.depth}")

    @property
    def data_name(self) -> str:
        """The data set."""
        if self.data != "auto":
            return self.data
        return "digits" if self.scale == "quick" else "mnist"

    @property
    def number_of_trials(self) -> int:
        """Trials a cell."""
        return self.trials or (24 if self.scale == "quick" else 300)

    @property
    def counted(self) -> int:
        """Best trials that count: the top 100 of 300 in the source."""
        return self.top or max(1, self.number_of_trials // 3)

    @property
    def length(self) -> float:
        """Epochs of every run."""
        return self.epochs or (10.0 if self.scale == "quick" else 8.0)

    @property
    def at_once(self) -> int:
        """What `kobai.studies.StudyOptions.together` is set to."""
        if self.together is not None:
            return self.together
        return 1 if self.scale == "quick" else 0

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """The small and the large batch."""
        if self.batches:
            return self.batches[0], self.batches[1]
        return (64, 1438) if self.data_name == "digits" else (256, 8192)
