"""Convolutions and transposed convolutions: one matrix per group, applied to patches."""

import dataclasses
import math
from typing import Any, final

from torch import Tensor, nn

from kobai.layers.convolution_moments import convolution_moment
from kobai.layers.form import LayerForm, Slot
from kobai.layers.interface import MatrixKind, Reading, unchanged
from kobai.layers.moments import sum_of_grams
from kobai.layers.patches import convolution_patches


@final
class Patches(Reading):
    """Rows are the patches of an image under the kernel; its positions are places.

    Args:
        module: The convolution.
    """

    channel_axis = 2
    # Convolutions multiply few channels by many places: converting costs more than it saves.
    worth_rounding = False

    def __init__(self, module: Any) -> None:
        self.module = module
        self.axes = 2 + len(module.kernel_size)
        self.taps = math.prod(module.kernel_size)

    def input_rows(self, inputs: Tensor, examples: int) -> Tensor | None:
        """See `Reading.input_rows`."""
        patches = convolution_patches(self.module, inputs)
        images, groups, _, inner = patches.shape
        if images % examples:
            return None
        return patches.permute(1, 0, 2, 3).reshape(groups, examples, -1, inner)

    def gradient_rows(self, gradients: Tensor, examples: int) -> Tensor | None:
        """See `Reading.gradient_rows`."""
        count = gradients.shape[0]
        if gradients.ndim == self.axes:
            gradients = gradients.unsqueeze(1)
        images, groups = gradients.shape[1], int(self.module.groups)
        if images % examples:
            return None
        split = gradients.reshape(count, examples, images // examples, groups, -1, math.prod(
            gradients.shape[3:]
        ))  # fmt: skip
        # (Q, E, images, G, M, places) -> (G, E, Q, images, places, M)
        ordered = split.permute(3, 1, 0, 2, 5, 4)
        return ordered.reshape(groups, examples, count, -1, split.shape[4])

    def input_moment(self, form: LayerForm, inputs: Tensor) -> tuple[Tensor, int]:
        """See `Reading.input_moment`."""
        return convolution_moment(self.module, form, inputs)

    def output_moment(self, form: LayerForm, gradients: Tensor) -> Tensor:
        """See `Reading.output_moment`."""
        images = gradients.reshape(-1, *gradients.shape[1 - self.axes :])
        rows = images.reshape(images.shape[0], form.groups, form.outputs, -1)
        if form.groups == 1:
            return sum_of_grams(rows.squeeze(1)).unsqueeze(0)
        flat = rows.permute(1, 2, 0, 3).reshape(form.groups, form.outputs, -1)
        return flat @ flat.mT


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolution(MatrixKind):
    """Convolutions in one to three dimensions and their transposes.

    Attributes:
        types: Classes, with the attributes of torch's.
    """

    name = "convolution"
    types: tuple[type[nn.Module], ...] = (
        nn.Conv1d, nn.Conv2d, nn.Conv3d,
        nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    )  # fmt: skip

    def matches(self, module: nn.Module) -> bool:
        """Tell whether it is of one of the types, with their way to compute."""
        return unchanged(module, self.types, ("forward", "_conv_forward"))

    def slots(self, module: Any) -> tuple[Slot, ...]:
        """One matrix per group."""
        groups, taps = module.groups, math.prod(module.kernel_size)
        present = module.bias is not None
        form = LayerForm(
            groups=groups,
            outputs=module.out_channels // groups,
            inputs=module.in_channels // groups * taps + present,
            bias=present,
            taps=taps,
            transposed=module.transposed,
        )
        return (Slot(name="", weight="weight", bias="bias" if present else None, form=form),)

    def reading(self, module: Any) -> Reading:
        """Rows are patches."""
        return Patches(module)

    def multiplied(self, module: Any, inputs: Tensor) -> Tensor:
        """The images."""
        return inputs
