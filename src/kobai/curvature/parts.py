"""Which parameters form a part: weight and bias of a layer, scale and shift, a table, or one alone.

Decided from the module tree, then held against a backward pass of two examples: what captured
layers claim the gradient to be must be what autograd says, example by example. A part that fails
(its parameters are also used elsewhere, or its module mixes examples) is demoted to the Jacobian
route, which is right for any code. So no block is wrong in silence.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from kobai.curvature.layer_inputs import matrix_shape, scale_axis
from kobai.problem import ParameterSpace

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
        indices: Coordinates in θ in the order of the part's own matrix, (groups, M, K) flat.
        shape: (groups, M, K), the bias counted in K; (1, units, 1 or 2) for "scale", (1, V, D) for
            "embedding", (1, 1, size) for "jacobian".
        bias: Whether the last of the K columns is the bias.
        reason: Why this kind.
    """

    kind: PartKind
    parameters: tuple[str, ...]
    modules: tuple[tuple[str, nn.Module], ...]
    indices: Int[Tensor, " p"]
    shape: tuple[int, int, int]
    bias: bool = False
    reason: str

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return int(self.indices.numel())


def parameter_indices(space: ParameterSpace) -> dict[str, Int[Tensor, " size"]]:
    """Coordinates in θ of every parameter, flat."""
    found, start = {}, 0
    for name, size in zip(space.names, space.sizes, strict=True):
        found[name] = torch.arange(start, start + size)
        start += size
    return found


def plan_parts(space: ParameterSpace, demoted: dict[str, str] | None = None) -> tuple[Part, ...]:
    """Put every trainable parameter into one part, from the module tree alone.

    Args:
        space: The parameters and their module.
        demoted: Parameters to take by the Jacobian route, with the reason.

    Returns:
        Parts in the order of their first parameters.
    """
    demoted = demoted or {}
    indices = parameter_indices(space)
    names = {id(p): name for name, p in space.module.named_parameters()}
    users: dict[str, list[tuple[str, nn.Module, str]]] = {name: [] for name in space.names}
    for path, module in space.module.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in names:
                known = users.get(names[id(parameter)])
                if known is not None:
                    known.append((path, module, attribute))
    parts: list[Part] = []
    done: set[str] = set()
    for name in space.names:
        if name in done:
            continue
        part = None
        if name in demoted:
            reason = demoted[name]
        else:
            part, reason = _layer_part(name, space, users, indices, names, demoted)
        if part is None:
            size = int(indices[name].numel())
            part = Part(
                kind="jacobian", parameters=(name,), modules=(), indices=indices[name],
                shape=(1, 1, size), reason=reason,
            )  # fmt: skip
        parts.append(part)
        done |= set(part.parameters)
    return tuple(parts)


def _layer_part(
    name: str,
    space: ParameterSpace,
    users: dict[str, list[tuple[str, nn.Module, str]]],
    indices: dict[str, Tensor],
    names: dict[int, str],
    demoted: dict[str, str],
) -> tuple[Part | None, str]:
    """The part that a parameter opens, or None and why."""
    uses = users[name]
    attributes = {attribute for _, _, attribute in uses}
    modules = [(path, module) for path, module, _ in uses]
    kinds = sorted({type(module).__name__ for _, module in modules})
    what = f"{'/'.join(sorted(attributes))} of {', '.join(kinds)}"
    shapes = {matrix_shape(module) for _, module in modules}
    shared = f", shared by {', '.join(path for path, _ in modules)}" if len(modules) > 1 else ""
    if None not in shapes and attributes == {"bias"}:
        width = int(indices[name].numel())
        return Part(
            kind="bias", parameters=(name,), modules=tuple(modules), indices=indices[name],
            shape=(1, width, 1), bias=True, reason=f"bias of {', '.join(kinds)} alone{shared}",
        ), ""  # fmt: skip
    if None not in shapes and attributes == {"weight"} and len(shapes) == 1:
        shape = matrix_shape(modules[0][1])
        assert shape is not None
        groups, outer, inner = shape
        places = indices[name].view(groups, outer, inner)
        bias = _common_bias(modules, names, users, demoted)
        if bias is not None:
            column = indices[bias].view(groups, outer, 1)
            places, inner = torch.cat([places, column], 2), inner + 1
        return Part(
            kind="matrix", parameters=(name,) + ((bias,) if bias else ()), modules=tuple(modules),
            indices=places.reshape(-1), shape=(groups, outer, inner), bias=bias is not None,
            reason=f"{', '.join(kinds)}{shared}",
        ), ""  # fmt: skip
    if len(uses) == 1:
        module = modules[0][1]
        if isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward:
            return Part(
                kind="embedding", parameters=(name,), modules=tuple(modules), indices=indices[name],
                shape=(1, module.num_embeddings, module.embedding_dim), reason="Embedding",
            ), ""  # fmt: skip
        if scale_axis(module) is not None and attributes <= {"weight", "bias"}:
            own = [
                names[id(p)]
                for p in (module._parameters.get("weight"), module._parameters.get("bias"))
                if p is not None and names[id(p)] in users and names[id(p)] not in demoted
            ]
            if all(len(users[n]) == 1 for n in own):
                places = torch.stack([indices[n] for n in own], 1)
                return Part(
                    kind="scale", parameters=tuple(own), modules=tuple(modules),
                    indices=places.reshape(-1), shape=(1, places.shape[0], places.shape[1]),
                    reason=f"scale and shift of {kinds[0]}",
                ), ""  # fmt: skip
    return None, what + shared


def _common_bias(
    modules: Sequence[tuple[str, nn.Module]],
    names: dict[int, str],
    users: dict[str, list[tuple[str, nn.Module, str]]],
    demoted: dict[str, str],
) -> str | None:
    """The bias that all these modules and no other share, if it is trained."""
    biases = [module._parameters.get("bias") for _, module in modules]
    first = biases[0]
    if first is None or any(other is not first for other in biases):
        return None
    name = names[id(first)]
    if name not in users or name in demoted:
        return None
    return name if {id(m) for _, m, _ in users[name]} == {id(m) for _, m in modules} else None
