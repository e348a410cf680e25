"""What an optimizer knows, put where torch looks for it: exact, by parameter, plain tensors.

Torch keeps an optimizer's memory in ``state``, by parameter, and casts it to the parameter's
precision when it is loaded. Curvature lies in stacks of equal blocks and may be more precise than
the parameters. So it is shown to torch when `state_dict` is called, and taken back as it was saved.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Remembering(Protocol):
    """An optimizer that keeps its memory in its own form."""

    param_groups: list[dict[str, Any]]

    def _export(self) -> tuple[Iterable[tuple[nn.Parameter, dict[str, Any]]], dict[str, Any]]:
        """Entries by parameter, and what belongs to no parameter; tensors may be views."""
        ...

    def _restore(
        self, entries: list[tuple[nn.Parameter, dict[str, Any]]], shared: dict[str, Any]
    ) -> None:
        """Take over what `_export` gave."""
        ...


def keep_state(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Have an optimizer's `state_dict` and `load_state_dict` go through `_export` and `_restore`.

    Args:
        optimizer: Has the members of `Remembering`.
        name: Key in ``state`` for what belongs to no parameter; marks whose state it is.
    """
    loaded: dict[str, Any] = {}

    def publish(owner: Any) -> None:
        entries, shared = owner._export()
        owner.state.clear()
        owner.state.update(entries)
        owner.state[name] = shared

    def remember(owner: Any, state_dict: dict[str, Any]) -> None:
        del owner
        if name not in state_dict["state"]:
            raise ValueError(
                f"this state was not saved by {name}: its entry {name!r} is missing; "
                "load it into the optimizer that saved it"
            )
        loaded.update(state_dict["state"])

    def adopt(owner: Any) -> None:
        saved = dict(loaded)
        loaded.clear()
        owner.state.clear()
        parameters = [p for group in owner.param_groups for p in group["params"]]
        entries = [(p, saved[i]) for i, p in enumerate(parameters) if i in saved]
        owner._restore(entries, saved[name])

    optimizer.register_state_dict_pre_hook(publish)
    optimizer.register_load_state_dict_pre_hook(remember)
    optimizer.register_load_state_dict_post_hook(adopt)


def copy_entry(target: Tensor, name: str, owner: str, entry: dict[str, Any]) -> None:
    """Copy one saved tensor into its place.

    Raises:
        ValueError: If it is missing or of another shape.
    """
    value = entry.get(name)
    if not isinstance(value, Tensor) or value.shape != target.shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else "nothing"
        raise ValueError(
            f"the saved state of {owner} has {found} for {name}, this model needs "
            f"{tuple(target.shape)}; it belongs to another model or another optimizer"
        )
    target.copy_(value)
