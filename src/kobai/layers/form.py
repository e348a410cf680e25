"""Which matrices a layer multiplies by: their shapes and where they lie in its parameters.

A layer has one or more slots, each a weight (with its bias, if it has one) that multiplies vectors:
a linear layer or a convolution has one, attention has its projections, a recurrent layer two for
each direction of each of its layers. Curvature and optimizers know layers by nothing else.
"""

import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
CELLS = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LayerForm:
    """How a layer's parameters form matrices, one a group.

    Attributes:
        groups: Number of independent matrices (groups of a convolution, the three projections of
            attention; else 1).
        outputs: Rows M of each matrix.
        inputs: Columns K of each matrix, the bias counted.
        bias: Whether the last column is the bias.
        taps: Entries of a kernel that share an input channel.
        turned: Whether the weight keeps inputs before outputs: (G·I, M, taps) instead of
            (G·M, I, taps), as transposed convolutions and embedding tables do.
        lookup: Whether inputs are one-hot, so that A is diagonal (an embedding).
        bias_input: What the bias is multiplied by.
    """

    groups: int
    outputs: int
    inputs: int
    bias: bool
    taps: int = 1
    turned: bool = False
    lookup: bool = False
    bias_input: float = 1.0

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.groups * self.outputs * self.inputs

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Shaped[Tensor, "G M K"]:
        """Weight and bias (or their gradients, or their indices) as matrices; None for zeros."""
        if self.turned:
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

        Reshaped it is the weight: (G, M, I·taps), or (G, I, M, taps) if `turned`.
        """
        part = matrix[:, :, : self.inputs - 1] if self.bias else matrix
        if self.turned:
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


def slots(module: Any) -> tuple[Slot, ...]:
    """The matrices of a module, none if it is of a kind that is not known.

    Linear, Conv1d to Conv3d and their transposes, Embedding, MultiheadAttention, RNN, LSTM, GRU and
    their cells, and subclasses of them that compute the same function. A layer of another kind is
    known by a property ``linear_scales``, a pair (s, t), if it computes s W h + t b from `weight` W
    and `bias` b (perhaps None) on the last axis of its input: it must be defined in the same class
    as the `forward` for which it speaks.
    """
    if _computes(module, nn.Linear):
        return (_slot(module, "", "weight", "bias", 1, module.out_features, module.in_features),)
    scales = linear_scales(module)
    if scales is not None:
        own = _slot(module, "", "weight", "bias", 1, *module.weight.shape)
        form = dataclasses.replace(own.form, bias_input=float(scales[1]))
        return (dataclasses.replace(own, form=form),)
    for kind in CONVOLUTIONS + TRANSPOSED:
        if _computes(module, kind) and _same(module, kind, "_conv_forward"):
            return (_convolution(module, turned=kind in TRANSPOSED),)
    if _computes(module, nn.Embedding) and module.max_norm is None:
        form = LayerForm(
            groups=1, outputs=module.embedding_dim, inputs=module.num_embeddings, bias=False,
            turned=True, lookup=True,
        )  # fmt: skip
        return (Slot(name="", weight="weight", bias=None, form=form),)
    if _computes(module, nn.MultiheadAttention):
        return _attention(module)
    for kind in RECURRENT:
        if _computes(module, kind):
            return _recurrent(module)
    for kind in CELLS:
        if _computes(module, kind):
            return tuple(
                _slot(module, f"weight_{end}", f"weight_{end}", f"bias_{end}", 1,
                      *getattr(module, f"weight_{end}").shape)
                for end in ("ih", "hh")
            )  # fmt: skip
    return ()


def linear_scales(module: Any) -> tuple[float, float] | None:
    """The factors (s, t) of a layer that computes s W h + t b, see `slots`; None for others."""
    kind = type(module)
    owners = [
        next((base for base in kind.__mro__ if name in vars(base)), None)
        for name in ("linear_scales", "forward")
    ]
    return module.linear_scales if owners[0] is not None and owners[0] is owners[1] else None


def is_composite(module: nn.Module) -> bool:
    """Whether a module multiplies by its matrices somewhere inside, out of sight of hooks."""
    return isinstance(module, nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase)


def _computes(module: Any, kind: type[nn.Module]) -> bool:
    return isinstance(module, kind) and _same(module, kind, "forward")


def _same(module: Any, kind: type[nn.Module], method: str) -> bool:
    return getattr(type(module), method, None) is getattr(kind, method, None)


def _slot(
    module: Any, name: str, weight: str, bias: str, groups: int, outputs: int, inputs: int
) -> Slot:
    present = tensor_at(module, bias) is not None
    form = LayerForm(groups=groups, outputs=outputs, inputs=inputs + present, bias=present)
    return Slot(name=name, weight=weight, bias=bias if present else None, form=form)


def _convolution(module: Any, turned: bool) -> Slot:
    groups, taps = module.groups, math.prod(module.kernel_size)
    present = module.bias is not None
    form = LayerForm(
        groups=groups,
        outputs=module.out_channels // groups,
        inputs=module.in_channels // groups * taps + present,
        bias=present,
        taps=taps,
        turned=turned,
    )
    return Slot(name="", weight="weight", bias="bias" if present else None, form=form)


def _attention(module: Any) -> tuple[Slot, ...]:
    width = module.embed_dim
    out = _slot(module, "out_proj", "out_proj.weight", "out_proj.bias", 1, width, width)
    if module._qkv_same_embed_dim:
        joint = _slot(module, "in_proj", "in_proj_weight", "in_proj_bias", 3, width, width)
        return joint, out
    # Query, key and value then have weights of their own but one bias between them.
    apart = tuple(
        Slot(
            name=name, weight=name, bias=None,
            form=LayerForm(groups=1, outputs=width, inputs=getattr(module, name).shape[1],
                           bias=False),
        )
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    )  # fmt: skip
    return *apart, out


def _recurrent(module: Any) -> tuple[Slot, ...]:
    found = []
    for level in range(module.num_layers):
        for end in ("", "_reverse") if module.bidirectional else ("",):
            suffix = f"_l{level}{end}"
            for name in ("ih", "hh") + (("hr",) if module.proj_size else ()):
                weight = f"weight_{name}{suffix}"
                found.append(
                    _slot(module, weight, weight, f"bias_{name}{suffix}", 1,
                          *getattr(module, weight).shape)
                )  # fmt: skip
    return tuple(found)
