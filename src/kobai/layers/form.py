"""The matrices that a layer multiplies by: their shapes, and where its parameters hold them.

A layer has one or more slots, each a weight (with its bias, if it has one) that multiplies vectors:
a linear layer or a convolution has one, attention has its projections, a recurrent layer two for
each direction of each of its layers. Curvature and optimizers know layers by nothing else.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LayerForm:
    """The matrices that a layer's parameters form, one per group.

    Attributes:
        groups: Number of independent matrices (groups of a convolution, the three projections of
            attention; else 1).
        outputs: Rows M of each matrix.
        inputs: Columns K of each matrix, the bias counted.
        bias: Whether the last column is the bias.
        taps: Entries of a kernel that share an input channel.
        transposed: Whether the weight keeps inputs before outputs: (G·I, M, taps) instead of
            (G·M, I, taps), as transposed convolutions and embedding tables do.
        lookup: Whether inputs are one-hot, so that A is diagonal (an embedding).
        bias_input: What the bias is multiplied by.
    """

    groups: int
    outputs: int
    inputs: int
    bias: bool
    taps: int = 1
    transposed: bool = False
    lookup: bool = False
    bias_input: float = 1.0

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.groups * self.outputs * self.inputs

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Shaped[Tensor, "G M K"]:
        """Weight and bias (or their gradients, or their indices) as matrices; None for zeros."""
        if self.transposed:
            flat = weight.reshape(self.groups, -1, self.outputs, self.taps)
            flat = flat.transpose(1, 2).flatten(2)
        else:
            flat = weight.reshape(self.groups, self.outputs, -1)
        if not self.bias:
            return flat
        column = (
            flat.new_zeros(self.groups, self.outputs, 1)
            if bias is None
            else bias.reshape(self.groups, self.outputs, 1)
        )
        return torch.cat([flat, column], dim=2)

    def weight_part(self, matrix: Shaped[Tensor, "G M K"]) -> Tensor:
        """The columns that belong to the weight, in the order of its entries; a view.

        Reshaped it is the weight: (G, M, I·taps), or (G, I, M, taps) if `transposed`.
        """
        part = matrix[:, :, : self.inputs - 1] if self.bias else matrix
        if self.transposed:
            return part.unflatten(2, (-1, self.taps)).transpose(1, 2)
        return part

    def bias_part(self, matrix: Float[Tensor, "G M K"]) -> Float[Tensor, "G M"]:
        """The column that belongs to the bias; a view. Only where there is a bias."""
        return matrix[:, :, self.inputs - 1]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One weight of a module that multiplies vectors, with its bias.

    Attributes:
        name: Within the module; empty for layers that have but one.
        weight: Path of the weight from the module, such as "weight" or "out_proj.weight".
        bias: Path of the bias, or None.
        form: Its form, the bias counted if there is one.
    """

    name: str
    weight: str
    bias: str | None
    form: LayerForm

    def form_with(self, bias: bool) -> LayerForm:
        """The form with or without the bias as a column."""
        if bias == self.form.bias:
            return self.form
        inputs = self.form.inputs + (1 if bias else -1)
        return dataclasses.replace(self.form, inputs=inputs, bias=bias)


def tensor_at(module: nn.Module, path: str) -> Any:
    """The parameter of a module at a dotted path as it is now; None if there is none."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def slot_of(
    module: Any, name: str, weight: str, bias: str, groups: int, outputs: int, inputs: int
) -> Slot:
    """A slot whose weight is stored by rows; without the bias where the module has none there."""
    present = tensor_at(module, bias) is not None
    form = LayerForm(groups=groups, outputs=outputs, inputs=inputs + present, bias=present)
    return Slot(name=name, weight=weight, bias=bias if present else None, form=form)
