"""What the study of true minima is made with, and at which size."""

import dataclasses
from typing import Literal

from kobai.reproductions.figures import Scale, check_config

DataName = Literal["cifar10", "digits", "mnist"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The loss landscape seen from a true minimum: a dense, a convolutional, a residual network."""

    scale: Scale = "quick"
    """quick: minutes on two cores; full: the source's networks and data, for a GPU."""
    data: DataName = "cifar10"
    """What the networks classify; the source takes cifar10, digits needs no files."""
    figure: str = "all"
    """Figures to make, separated by commas (solutions, landscape, descent), or all."""
    seed: int = 0
    """First seed (an integer, 0 or more)."""
    threads: int | None = None
    """Threads for computing (count); default: as many as there are cores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a GPU where there is one."""

    def __post_init__(self) -> None:
        check_config(self)
        if self.data not in ("cifar10", "digits", "mnist"):
            raise ValueError(f"data is 'cifar10', 'digits' or 'mnist', got {self.data!r}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is 'auto', 'cpu' or 'cuda', got {self.device!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleSetting:
    """Sizes at one scale; the source leaves all of them open but the learning rate.

    Attributes:
        images: Training images; None for all.
        test_images: Test images; None for all.
        shrink: Side of the blocks of pixels that are averaged into one.
        width: Factor on the channels of the residual network.
        rate: Adam's learning rate (the source's).
        batch_size: Images a step.
        epochs: The longest a network is trained.
        seeds: Trainings of every network.
        examples: Training images on which landscapes and descents are measured; None for all.
        nodes: Nodes a side of the pictures.
        ensemble: Random planes a network, and nodes a side of each.
        products: Hessian products that a proof may take.
        descent_networks: Whose true minima are headed for.
        descent_epochs: How long.
        radii: Distances of starts from θ*, filter by filter, as shares of each filter's norm.
        others: Other random starts.
        curve_steps: Steps of training a connecting curve.
    """

    images: int | None
    test_images: int | None
    shrink: int
    width: float
    rate: float = 0.01
    batch_size: int
    epochs: int
    seeds: int
    examples: int | None
    nodes: int
    ensemble: tuple[int, int]
    products: int
    descent_networks: tuple[str, ...]
    descent_epochs: int
    radii: tuple[float, ...]
    others: int
    curve_steps: int


SETTINGS: dict[str, ScaleSetting] = {
    "quick": ScaleSetting(
        images=256, test_images=256, shrink=2, width=0.125, batch_size=32, epochs=60, seeds=1,
        examples=128, nodes=15, ensemble=(3, 7), products=40, descent_networks=("dnn",),
        descent_epochs=400, radii=(0.01, 0.1, 0.3, 1.0), others=2, curve_steps=40,
    ),
    "full": ScaleSetting(
        images=None, test_images=None, shrink=1, width=1.0, batch_size=128, epochs=300, seeds=3,
        examples=10_000, nodes=51, ensemble=(16, 21), products=200,
        descent_networks=("dnn", "cnn", "resnet50"), descent_epochs=100,
        radii=(0.01, 0.03, 0.1, 0.3, 1.0), others=3, curve_steps=400,
    ),
}  # fmt: skip
"""Sizes at each scale."""
