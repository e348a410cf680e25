"""The plan of parameters: those that get a block together, from the module tree alone.

The same decision serves every Fisher structure and every optimizer: weight and bias of a layer that
multiplies by a matrix, scale and shift of a normalisation, a table, or a parameter by itself.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal

from torch import nn

from kobai.layers import LayerForm, Slot, has_scale, slots, tensor_at

GroupKind = Literal["matrix", "bias", "scale", "embedding", "alone"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ParameterGroup:
    """Parameters whose curvature is taken together.

    Attributes:
        kind: "matrix": weight (and bias) of layers that multiply by a matrix; "bias": their bias
            alone; "embedding": a table; "scale": scale and shift of a normalisation; "alone": a
            parameter of which nothing is known.
        parameters: Names; weight before bias.
        modules: Path and module of every user; empty for "alone".
        slots: For each of them, which of its matrices; empty text for modules that have but one.
        form: How the parameters form matrices; None for "scale" and "alone".
        reason: Why this kind.
    """

    kind: GroupKind
    parameters: tuple[str, ...]
    modules: tuple[tuple[str, nn.Module], ...] = ()
    slots: tuple[str, ...] = ()
    form: LayerForm | None = None
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """A parameter at one place of the module tree, and the slot that claims it."""

    path: str
    module: nn.Module
    attribute: str
    slot: Slot | None
    role: str


def group_parameters(
    model: nn.Module, chosen: Collection[str], demoted: Mapping[str, str] | None = None
) -> tuple[ParameterGroup, ...]:
    """Put every chosen parameter into one group.

    Args:
        model: The model.
        chosen: Names of parameters, in order.
        demoted: Parameters to be taken alone, with the reason.

    Returns:
        Groups in the order of their first parameters.
    """
    demoted = demoted or {}
    names = {id(p): name for name, p in model.named_parameters()}
    users = _users(model, names)
    wanted = set(chosen)
    groups: list[ParameterGroup] = []
    done: set[str] = set()
    for name in chosen:
        if name in done:
            continue
        if name in demoted:
            group = ParameterGroup(kind="alone", parameters=(name,), reason=demoted[name])
        else:
            group = _group(name, users, names, wanted - set(demoted))
        groups.append(group)
        done |= set(group.parameters)
    return tuple(groups)


def _users(model: nn.Module, names: Mapping[int, str]) -> dict[str, list[_Use]]:
    """Every place of each parameter; those inside composite modules are the composite's."""
    claims: dict[tuple[int, str], _Use] = {}
    for path, module in model.named_modules():
        for slot in slots(module):
            for role, place in (("weight", slot.weight), ("bias", slot.bias)):
                if place is None:
                    continue
                parent, _, attribute = place.rpartition(".")
                owner = tensor_at(module, parent) if parent else module
                # The first claim stands: an outer module comes before those inside it.
                claims.setdefault((id(owner), attribute), _Use(path, module, attribute, slot, role))
    users: dict[str, list[_Use]] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None or id(parameter) not in names:
                continue
            use = claims.get((id(module), attribute), _Use(path, module, attribute, None, ""))
            users.setdefault(names[id(parameter)], []).append(use)
    return users


def _group(
    name: str, users: dict[str, list[_Use]], names: Mapping[int, str], wanted: set[str]
) -> ParameterGroup:
    """The group that a parameter opens."""
    uses = users[name]
    kinds = "/".join(sorted({type(use.module).__name__ for use in uses}))
    what = f"{'/'.join(sorted({use.attribute for use in uses}))} of {kinds}"
    paths = [use.path + (f".{use.slot.name}" if use.slot and use.slot.name else "") for use in uses]
    shared = f", shared by {', '.join(paths)}" if len(uses) > 1 else ""
    slotted = [use.slot for use in uses if use.slot is not None]
    roles = {use.role for use in uses}
    modules = tuple((use.path, use.module) for use in uses)
    slot_names = tuple(slot.name for slot in slotted)
    if len(slotted) == len(uses) and roles == {"bias"}:
        forms = [slot.form for slot in slotted]
        if len({form.bias_input for form in forms}) > 1:
            reason = f"{what}{shared}: layers of different scale"
            return ParameterGroup(kind="alone", parameters=(name,), reason=reason)
        width = forms[0].groups * forms[0].outputs
        return ParameterGroup(
            kind="bias", parameters=(name,), modules=modules, slots=slot_names,
            form=LayerForm(
                groups=1, outputs=width, inputs=1, bias=True, bias_input=forms[0].bias_input
            ),
            reason=f"bias of {kinds} alone{shared}",
        )  # fmt: skip
    if len(slotted) == len(uses) and roles == {"weight"}:
        bias = _common_bias(uses, users, names, wanted)
        forms = {slot.form_with(bias is not None) for slot in slotted}
        if len(forms) > 1:
            reason = f"{what}{shared}: layers of different form"
            return ParameterGroup(kind="alone", parameters=(name,), reason=reason)
        (form,) = forms
        own = slotted[0].name
        if form.lookup and len(uses) > 1 and any(m.padding_idx is not None for _, m in modules):  # pyright: ignore
            reason = f"{what}{shared}: tables with padding"
            return ParameterGroup(kind="alone", parameters=(name,), reason=reason)
        return ParameterGroup(
            kind="embedding" if form.lookup else "matrix",
            parameters=(name,) + ((bias,) if bias else ()), modules=modules, slots=slot_names,
            form=form, reason=kinds + (f" {own}" if own else "") + shared,
        )  # fmt: skip
    if len(uses) == 1 and not slotted:
        module = uses[0].module
        if has_scale(module) and uses[0].attribute in ("weight", "bias"):
            pair = [module._parameters.get("weight"), module._parameters.get("bias")]
            own = [names[id(p)] for p in pair if p is not None and names[id(p)] in wanted]
            if all(len(users[n]) == 1 for n in own):
                return ParameterGroup(
                    kind="scale", parameters=tuple(own), modules=modules, slots=("",),
                    reason=f"scale and shift of {kinds}",
                )  # fmt: skip
    return ParameterGroup(kind="alone", parameters=(name,), reason=what + shared)


def _common_bias(
    uses: list[_Use], users: dict[str, list[_Use]], names: Mapping[int, str], wanted: set[str]
) -> str | None:
    """The bias that all these slots and no other share, if it is wanted."""
    found = []
    for use in uses:
        assert use.slot is not None
        found.append(None if use.slot.bias is None else tensor_at(use.module, use.slot.bias))
    first = found[0]
    if first is None or any(other is not first for other in found):
        return None
    name = names.get(id(first))
    if name is None or name not in wanted:
        return None
    mine = {(id(use.module), use.slot.name) for use in uses if use.slot}
    theirs = {(id(use.module), use.slot.name if use.slot else "") for use in users[name]}
    return name if mine == theirs else None
