"""Parts of θ whose gradient rows are made together: a layer, a scale and shift, a table, or one.

Decided from the module tree, then held against a backward pass of two examples: what captured
layers claim the gradient to be must be what autograd says, example by example. A part that fails
(its parameters are also used elsewhere, or its module mixes examples) is demoted to the Jacobian
route, which is right for any code. So no block is wrong in silence.
"""

import dataclasses
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn

from kobai.layers import LayerForm
from kobai.problem import ParameterSpace
from kobai.problem.plan import group_parameters

PartKind = Literal["matrix", "bias", "scale", "embedding", "jacobian"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Parameters whose gradient rows are made together.

    Attributes:
        kind: "matrix": weight (and bias) of Linear or Conv layers; "bias": their bias alone;
            "scale": scale and shift of a normalisation; "embedding"; "jacobian": a parameter seen
            through row-by-row backward passes only.
        parameters: Names.
        modules: Path and module of every user that was found; empty for "jacobian".
        slots: For each of them, which of its matrices; empty text for modules that have but one.
        indices: Coordinates in θ in the order of the part's own matrix, (groups, M, K) flat.
        shape: (groups, M, K), the bias counted in K; (1, units, 1 or 2) for "scale", (1, V, D) for
            "embedding", (1, 1, size) for "jacobian".
        form: How the parameters form matrices; None for "scale" and "jacobian".
        reason: Why this kind.
    """

    kind: PartKind
    parameters: tuple[str, ...]
    modules: tuple[tuple[str, nn.Module], ...]
    indices: Int[Tensor, " p"]
    shape: tuple[int, int, int]
    slots: tuple[str, ...] = ()
    form: LayerForm | None = None
    reason: str

    @property
    def bias(self) -> bool:
        """True if the last of the K columns is the bias."""
        return self.form is not None and self.form.bias

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return int(self.indices.numel())


# Two integers a parameter, the same as long as the parameters are: made once.
_NUMBERS: WeakKeyDictionary[ParameterSpace, Tensor] = WeakKeyDictionary()
_COORDINATES: WeakKeyDictionary[ParameterSpace, dict[str, Tensor]] = WeakKeyDictionary()
_ARRANGED: WeakKeyDictionary[ParameterSpace, dict[Any, Tensor]] = WeakKeyDictionary()


def all_indices(space: ParameterSpace) -> Int[Tensor, " P"]:
    """0…P−1."""
    if space not in _NUMBERS:
        _NUMBERS[space] = torch.arange(space.dimension)
    return _NUMBERS[space]


def parameter_indices(space: ParameterSpace) -> dict[str, Int[Tensor, " size"]]:
    """Coordinates in θ of every parameter, flat."""
    if space not in _COORDINATES:
        pieces = all_indices(space).split(list(space.sizes))
        _COORDINATES[space] = dict(zip(space.names, pieces, strict=True))
    return _COORDINATES[space]


def plan_parts(space: ParameterSpace, demoted: dict[str, str] | None = None) -> tuple[Part, ...]:
    """Put every trainable parameter into one part, from the module tree alone.

    Args:
        space: The parameters and their module.
        demoted: Parameters to take by the Jacobian route, with the reason.

    Returns:
        Parts in the order of their first parameters.
    """
    indices = parameter_indices(space)
    shapes = dict(space.module.named_parameters())
    parts: list[Part] = []
    for group in group_parameters(space.module, space.names, demoted):
        places = [indices[name] for name in group.parameters]
        form = group.form
        if group.kind == "alone":
            where, shape, kind = places[0], (1, 1, int(places[0].numel())), "jacobian"
        elif group.kind == "scale":
            stacked = torch.stack(places, 1)
            shape = 1, stacked.shape[0], stacked.shape[1]
            where, kind = stacked.reshape(-1), "scale"
        elif group.kind == "embedding":
            assert form is not None
            where, shape, kind = places[0], (1, form.inputs, form.outputs), "embedding"
        elif group.kind == "bias":
            where, shape, kind = places[0], (1, int(places[0].numel()), 1), "bias"
        else:
            assert form is not None
            key = (group.parameters, form)
            known = _ARRANGED.setdefault(space, {})
            if key not in known:
                weight = places[0].view(shapes[group.parameters[0]].shape)
                known[key] = form.matrix(weight, places[1] if form.bias else None).reshape(-1)
            where = known[key]
            shape, kind = (form.groups, form.outputs, form.inputs), "matrix"
        parts.append(
            Part(
                kind=kind,
                parameters=group.parameters,
                modules=group.modules,
                slots=group.slots,
                indices=where,
                shape=shape,
                form=form,
                reason=group.reason,
            )
        )
    return tuple(parts)
