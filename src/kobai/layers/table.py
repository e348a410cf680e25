"""The table of layer kinds, and questions about modules that it answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from kobai.layers.attention import Attention
from kobai.layers.convolution import Convolution
from kobai.layers.embedding import Embedding
from kobai.layers.form import Slot
from kobai.layers.interface import LayerKind, MatrixKind, Reading, ScaleKind
from kobai.layers.linear import Linear, is_conv1d, linear_scales
from kobai.layers.norm import NORMS
from kobai.layers.recurrent import Recurrent, RecurrentCell
from kobai.layers.rows import LAST_AXIS

KINDS: list[LayerKind] = [
    Linear(),
    Linear(types=(), recognised=lambda module: linear_scales(module) is not None),
    Linear(types=(), recognised=is_conv1d, transposed=True),
    Convolution(),
    Embedding(),
    Attention(),
    Recurrent(),
    RecurrentCell(),
    *NORMS,
]
"""Every kind; the first that matches a module is its own, and users' own come first."""


def register_layer(
    layer: type[nn.Module] | LayerKind, like: type[nn.Module] = nn.Linear, **names: Any
) -> LayerKind:
    """Tell kobai what a layer class of your own computes.

    Its parameters then get the blocks that such layers have, in `Fisher` and in optimizers: without
    it they are known by row-by-row backward passes (`Fisher`) or on the diagonal (`KFAC`). A
    subclass of a torch layer that leaves `forward` as it is needs no call; one that overrides
    `forward` is not taken for the layer until it is registered. Its own subclasses are registered
    with it, as long as they leave its `forward` as it is.

    The claim is about every call: the output is the stated function of the first argument and of
    the named parameters, and nothing else in the model reads them. `Fisher` holds it against a
    backward pass of two examples and says in `coverage()` where it fails; `KFAC` believes it.

    Args:
        layer: The class; or a `LayerKind` of your own for a layer like none that torch has.
        like: The torch layer that it computes as: `nn.Linear` (W h + b on the last axis of its
            input), a convolution or normalisation (with torch's attributes and parameter names), an
            embedding, attention, a recurrent layer or cell.
        **names: Where it differs; for linear layers ``weight`` and ``bias``, names of W and b
            (``bias=None``: none), and ``transposed=True`` if W is stored as (inputs, outputs).

    Returns:
        The kind, which stands first in the table from now on.

    Raises:
        TypeError: If `layer` is not a class of modules, or a name is not one of that kind's.
        ValueError: If no kind is known for `like`.

    Example:
        >>> import torch
        >>> from kobai.layers import register_layer, slots
        >>> class Dense(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.kernel = torch.nn.Parameter(torch.zeros(3, 2))
        ...
        ...     def forward(self, x):
        ...         return x @ self.kernel
        >>> _ = register_layer(Dense, weight="kernel", bias=None, transposed=True)
        >>> slots(Dense())[0].form.outputs
        2
    """
    if isinstance(layer, LayerKind):
        kind = layer
    else:
        if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
            raise TypeError(f"register a subclass of torch.nn.Module or a LayerKind, got {layer!r}")
        models = [kind for kind in KINDS if issubclass(like, kind.types)]
        if not models:
            raise ValueError(
                f"no layer kind is known for like={like.__name__}; the known ones are "
                + ", ".join(sorted({t.__name__ for kind in KINDS for t in kind.types}))
            )
        kind = dataclasses.replace(models[-1], types=(layer,), **names)  # pyright: ignore
    KINDS.insert(0, kind)
    return kind


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of layer whose function a module computes; None if it is of no known kind."""
    return next((kind for kind in KINDS if kind.matches(module)), None)


def layout_of(module: nn.Module) -> LayerKind | None:
    """The kind of layer whose parameters a module has, whatever it does with them."""
    found = next((kind for kind in KINDS if isinstance(module, kind.types)), None)
    return kind_of(module) if found is None else found


def is_kind(module: nn.Module, name: str) -> bool:
    """Tell whether a module has the parameters of a kind of layer, such as "convolution"."""
    kind = layout_of(module)
    return kind is not None and kind.name == name


def slots(module: nn.Module) -> tuple[Slot, ...]:
    """The matrices of a module, none if it is of a kind that is not known."""
    kind = kind_of(module)
    return () if kind is None else kind.slots(module)


def units_of(module: nn.Module, positions: Tensor) -> Tensor:
    """Arrange what a parameter of a module holds by the unit that it feeds.

    Args:
        module: Any.
        positions: Shaped like one of the module's own parameters, of at least one axis.

    Returns:
        The same entries, (units, entries of a unit). A unit is an entry of a scale or shift, a
        column of a transposed weight (of its group), else what has one index on the first axis.
    """
    kind = layout_of(module)
    if isinstance(kind, ScaleKind):
        return positions.reshape(-1, 1)
    if isinstance(kind, MatrixKind) and positions.ndim > 1:
        form = kind.slots(module)[0].form_with(False)
        if form.transposed and not form.lookup:
            return form.matrix(positions, None).flatten(0, 1)
    return positions.reshape(positions.shape[0], positions.shape[1:].numel())


def reading_of(module: nn.Module | None) -> Reading:
    """The way to read calls of a module as rows; None: along their last axis."""
    kind = None if module is None else kind_of(module)
    return kind.reading(module) if isinstance(kind, MatrixKind) else LAST_AXIS


def has_scale(module: nn.Module) -> bool:
    """Tell whether a module ends with a scale, and perhaps a shift, for each unit."""
    return isinstance(kind_of(module), ScaleKind)


def scale_rows(
    module: nn.Module, names: Sequence[str], inputs: Tensor, gradients: Tensor, examples: int
) -> Float[Tensor, "E Q U k"] | None:
    """Per-example gradients of a normalisation's scale and shift; see `ScaleKind.rows`."""
    kind = kind_of(module)
    return kind.rows(module, names, inputs, gradients, examples) if isinstance(
        kind, ScaleKind
    ) else None  # fmt: skip


def is_plain_linear(module: nn.Module) -> bool:
    """Tell whether the gradient of a module's weight, as stored, is gᵀa for its rows a and g."""
    kind = kind_of(module)
    return isinstance(kind, Linear) and not kind.transposed and linear_scales(module) is None
