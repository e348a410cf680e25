"""Keep what an optimizer knows where torch looks for it: exact, by parameter, plain tensors.

Torch keeps an optimizer's memory in ``state``, by parameter, and casts it to the parameter's
precision when it is loaded. Curvature lies in stacks of equal blocks and may be more precise than
the parameters, and counts belong to no parameter. So the memory is shown to torch when `state_dict`
is called, and taken back as it was saved. The layout is torch's own: every key of ``state`` is a
parameter, and what belongs to none stands in the first parameter's entry, as in
`torch.optim.LBFGS`, with the number of the layout. `torch.distributed.checkpoint.state_dict`
therefore saves and loads it like any other.
"""

from typing import Any

import torch
from torch import Tensor

LAYOUT = 2
"""Number of the layout. In layout 1 shared state had a key of its own in ``state``."""

_FIRST_KEY = "kobai"
"""Key in ``state`` of layout 1 for optimizers that take the objective."""


def keep_state(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Have an optimizer's `state_dict` and `load_state_dict` go through `_export` and `_restore`.

    Args:
        optimizer: Has ``_export() -> (entries, shared)``, pairs of a parameter and its dictionary,
            of which tensors may be views, and a dictionary of what belongs to no parameter; and
            ``_restore(entries, shared)``, which takes over copies of both.
        name: Key of the shared state; marks whose state it is.
    """
    loaded: list[dict[str, Any]] = []

    def publish(owner: Any) -> None:
        entries, shared = owner._export()
        # Every parameter has an entry: torch's distributed checkpoints ask for it.
        state = {p: {} for p in _parameters(owner)} | dict(entries)
        first = next(iter(state))
        state[first] = {**state[first], name: {**shared, "layout": LAYOUT}}
        owner.state.clear()
        owner.state.update(state)

    def read(owner: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        saved = dict(state_dict["state"])
        shared = _shared(saved, name)
        if shared is None:
            raise ValueError(
                f"this state was not saved by {type(owner).__name__}: its entry {name!r} is "
                "missing; load it into the optimizer that saved it"
            )
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        loaded[:] = [{"entries": [saved.get(key, {}) for key in keys], "shared": shared}]
        return {**state_dict, "state": {}}  # nothing for torch to cast

    def adopt(owner: Any) -> None:
        (saved,) = loaded
        loaded.clear()
        owner.state.clear()
        parameters = _parameters(owner)
        owner.state[parameters[0]] = {}  # not empty, so that torch makes no step to fill it
        pairs = zip(parameters, saved["entries"], strict=True)
        entries = [(p, {k: v for k, v in own.items() if k != name}) for p, own in pairs]
        owner._restore([(p, own) for p, own in entries if own], saved["shared"])

    optimizer.state[_parameters(optimizer)[0]] = {}
    optimizer.register_state_dict_pre_hook(publish)
    optimizer.register_load_state_dict_pre_hook(read)
    optimizer.register_load_state_dict_post_hook(adopt)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _shared(saved: dict[Any, Any], name: str) -> dict[str, Any] | None:
    """Find the shared state, in the first parameter's entry or, in layout 1, beside the entries."""
    for entry in saved.values():
        if isinstance(entry.get(name), dict) and "layout" in entry[name]:
            if entry[name]["layout"] > LAYOUT:
                raise ValueError(
                    f"this state of {name} has layout {entry[name]['layout']}, this kobai reads up "
                    f"to {LAYOUT}; load it with the version that saved it or a newer one"
                )
            return entry[name]
    return saved.get(name, saved.get(_FIRST_KEY))


def copy_entry(target: Tensor, name: str, owner: str, entry: dict[str, Any]) -> None:
    """Copy one saved number or tensor into its place, whatever axes of length one it had.

    Raises:
        ValueError: If it is missing or of another size.
    """
    value = entry.get(name)
    known = None if value is None else torch.as_tensor(value)
    if known is None or known.numel() != target.numel():
        found = "nothing" if known is None else tuple(known.shape)
        raise ValueError(
            f"the saved state of {owner} has {found} for {name}, this model needs "
            f"{tuple(target.shape)}; it belongs to another model or another optimizer"
        )
    target.copy_(known.reshape(target.shape))
