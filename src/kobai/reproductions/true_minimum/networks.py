"""The three networks of the source, their data, and what the source leaves open about both."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kobai import data, models, seeds
from kobai.models import CNNConfig, MLPConfig, ModelConfig, ResNet50Config
from kobai.problem import Batch, Problem
from kobai.reproductions.true_minimum.config import SETTINGS, Config, ScaleSetting

NETWORKS: dict[str, str] = {"dnn": "DNN", "cnn": "CNN", "resnet50": "ResNet-50"}
"""Key of a network → what the source calls it."""

OPEN = (
    "Left open by the source and chosen here: He initialisation; Adam with its usual moments; "
    "pixels standardised; no augmentation; batch normalisation in the residual network alone, "
    "frozen at its running averages wherever a landscape is meant; the CNN's fifth convolution has "
    "10 channels, whose means over positions are the logits, and 2 × 2 max-pooling follows the "
    "other four; the residual network has the 7 × 7 stem for images of 32 or more pixels and a "
    "3 × 3 one below; T is the loss on all training images in evaluation mode after every epoch."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """A configuration with its data loaded: what builds problems.

    Attributes:
        config: What was asked for.
        setting: The sizes of its scale.
        splits: The data.
        device: Where to compute.
    """

    config: Config
    setting: ScaleSetting
    splits: data.DataSplits
    device: torch.device

    def problem(self, network: str, seed: int) -> Problem:
        """A network freshly initialised, in training mode, with all its data on the device."""
        x, y = self.splits.train
        model = models.build(
            architecture(network, self.setting, self.splits.input_shape),
            input_shape=tuple(x.shape[1:]),
            num_outputs=self.splits.output_size,
            generator=seeds.generator(seed, f"init {network}"),
        ).to(self.device)
        test = None if self.splits.test is None else self._move(self.splits.test)
        return Problem(model, "categorical", train=self._move((x, y)), test=test)

    def measured(self, problem: Problem) -> Problem:
        """The same model on the examples that landscapes and descents are measured on."""
        few = problem.train.first(self.setting.examples or problem.train.size)
        test = problem.test
        unseen = None if test is None else test.first(self.setting.examples or test.size)
        return Problem(problem.model, problem.likelihood, train=few, test=unseen)

    @property
    def measured_examples(self) -> int:
        """How many training images landscapes are measured on."""
        return min(self.setting.examples or 2**62, len(self.splits.train[0]))

    @property
    def chance(self) -> float:
        """Loss of the best constant prediction on the training data."""
        counts = torch.bincount(self.splits.train[1]).double()
        share = counts[counts > 0] / counts.sum()
        return float(-(share * share.log()).sum())

    def describe(self) -> str:
        """Data and sizes in a sentence."""
        shape = " × ".join(str(n) for n in self.splits.input_shape)
        shrunk = f", blocks of {self.setting.shrink} × {self.setting.shrink} pixels averaged"
        return (
            f"{self.config.data}, {len(self.splits.train[0]):,} training images ({shape}"
            f"{shrunk if self._shrunk else ''}); batches of {self.setting.batch_size}; residual "
            f"network {self.setting.width:g} times as wide"
        )

    @property
    def _shrunk(self) -> bool:
        return self.setting.shrink > 1 and self.config.data == "cifar10"

    def _move(self, pair: tuple[Tensor, Tensor]) -> Batch:
        return Batch(pair[0].to(self.device), pair[1].to(self.device))


def bench(config: Config, setting: ScaleSetting | None = None) -> Bench:
    """Load the data of a configuration.

    Args:
        config: The configuration.
        setting: Sizes; default: those of its scale.

    Raises:
        kobai.data.DataError: If the data are not here and cannot be fetched.
    """
    setting = SETTINGS[config.scale] if setting is None else setting
    limit = None
    if setting.images is not None or setting.test_images is not None:
        limit = (setting.images or 2**62, setting.test_images or 2**62)
    splits = data.load(config.data, standardize=True, limit=limit)
    if setting.shrink > 1 and config.data == "cifar10":
        splits = dataclasses.replace(
            splits,
            train=_shrink(splits.train, setting.shrink),
            test=None if splits.test is None else _shrink(splits.test, setting.shrink),
        )
    gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return Bench(config, setting, splits, torch.device("cuda" if gpu else "cpu"))


def _shrink(pair: tuple[Tensor, Tensor], side: int) -> tuple[Tensor, Tensor]:
    return F.avg_pool2d(pair[0], side), pair[1]


def architecture(network: str, setting: ScaleSetting, input_shape: tuple[int, ...]) -> ModelConfig:
    """The configuration of a network of the source.

    Args:
        network: "dnn": dense layers of 128, 64, 32, 16 and 10 units; "cnn": 3 × 3 convolutions of
            128, 64, 32, 16 and 10 channels; "resnet50": stages of 3, 4, 6, 3 bottlenecks.
        setting: Its `width` scales the residual network.
        input_shape: (channels, height, width).

    Raises:
        ValueError: If the network is unknown.
    """
    if network == "dnn":
        return MLPConfig(widths=(128, 64, 32, 16))
    if network == "cnn":
        # Four poolings take 16 pixels to one; smaller images are not pooled.
        pool = "max" if min(input_shape[1:]) >= 16 else "none"
        return CNNConfig(channels=(128, 64, 32, 16), head="conv", pool=pool)
    if network == "resnet50":
        stem = "large" if min(input_shape[1:]) >= 32 else "small"
        return ResNet50Config(width_multiplier=setting.width, stem=stem)
    raise ValueError(f"unknown network {network!r}; the source has {', '.join(NETWORKS)}")


def parameters(model: nn.Module) -> int:
    """P."""
    return sum(math.prod(p.shape) for p in model.parameters() if p.requires_grad)
