"""Kinds of layers: what their parameters are, and what their calls say about gradients.

Whoever needs to know what a layer does asks here. `register_layer` adds a kind of one's own.
"""

from kobai.layers.capture import Call, Capture, attach, capture
from kobai.layers.form import LayerForm, Slot, tensor_at
from kobai.layers.interface import CompositeKind, LayerKind, MatrixKind, Reading, ScaleKind
from kobai.layers.linear import linear_scales
from kobai.layers.norm import normalises_batches
from kobai.layers.table import (
    has_scale,
    is_kind,
    is_plain_linear,
    kind_of,
    layout_of,
    reading_of,
    register_layer,
    scale_rows,
    slots,
    units_of,
)
from kobai.layers.uses import LayerUse, Watch

__all__ = [
    "Call",
    "Capture",
    "CompositeKind",
    "LayerForm",
    "LayerKind",
    "LayerUse",
    "MatrixKind",
    "Reading",
    "ScaleKind",
    "Slot",
    "Watch",
    "attach",
    "capture",
    "has_scale",
    "is_kind",
    "is_plain_linear",
    "kind_of",
    "layout_of",
    "linear_scales",
    "normalises_batches",
    "reading_of",
    "register_layer",
    "scale_rows",
    "slots",
    "tensor_at",
    "units_of",
]
