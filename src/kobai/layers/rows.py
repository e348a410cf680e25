"""Calls of layers that multiply the last axis of what they are given, or look up lines."""

from typing import final

import torch
from torch import Tensor

from kobai.layers.form import LayerForm
from kobai.layers.interface import Reading
from kobai.layers.moments import bordered_gram, gram


@final
class LastAxis(Reading):
    """Rows are the inputs along their last axis; all axes between are places."""

    axes = 2
    channel_axis = -1
    taps = 1
    worth_rounding = True

    def input_rows(self, inputs: Tensor, examples: int) -> Tensor | None:
        """See `Reading.input_rows`."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        if flat.shape[0] % examples:
            return None
        return flat.reshape(1, examples, -1, flat.shape[1])

    def gradient_rows(self, gradients: Tensor, examples: int) -> Tensor | None:
        """See `Reading.gradient_rows`."""
        count = gradients.shape[0]
        flat = gradients.reshape(count, -1, gradients.shape[-1])
        if flat.shape[1] % examples:
            return None
        return flat.reshape(1, count, examples, -1, flat.shape[2]).transpose(1, 2)

    def input_moment(self, form: LayerForm, inputs: Tensor) -> tuple[Tensor, int]:
        """See `Reading.input_moment`. Cost: R K² multiplications, for wide layers 5/8 of that."""
        if form.lookup:
            return torch.bincount(inputs.reshape(-1), minlength=form.inputs), inputs.numel()
        rows = inputs.reshape(-1, inputs.shape[-1])
        moment = bordered_gram(rows) if form.bias else gram(rows)
        return moment.unsqueeze(0), rows.shape[0]

    def output_moment(self, form: LayerForm, gradients: Tensor) -> Tensor:
        """See `Reading.output_moment`."""
        return gram(gradients.reshape(-1, form.outputs)).unsqueeze(0)


LAST_AXIS = LastAxis()
