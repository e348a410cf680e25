"""Hooks that watch a model for an optimizer without keeping it alive or following copies."""

import sys
import weakref
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import nn


class _InertHook:
    """What a hook becomes in a copy of the model: nothing."""

    def __call__(self, *arguments: Any) -> None:
        return None


@final
class ModelHook:
    """A module hook that works on its owner's model only and does not keep the owner alive.

    Copies and pickles of the model (weight averaging, `torch.save`) get an inert one.

    Args:
        owner: Has the attribute `model`.
        member: Name of its method that is called with what follows the module.
    """

    def __init__(self, owner: Any, member: str) -> None:
        self._owner = weakref.ref(owner)
        self._member = member

    def __call__(self, module: nn.Module, *arguments: Any) -> None:
        """Call the owner's method, if the owner is there and watches this module."""
        owner = self._owner()
        if owner is not None and owner.model is module:
            getattr(owner, self._member)(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_InertHook, ())


def is_training_pass(model: nn.Module) -> bool:
    """Whether a forward pass under way may be one of the training loop.

    Gradients are on and the model's own parameters are in their places: where curvature or a loss
    is asked of the model as a function of its parameters, other tensors are.
    """
    return torch.is_grad_enabled() and all(isinstance(p, nn.Parameter) for p in model.parameters())


def remove_hooks(handles: Iterable[torch.utils.hooks.RemovableHandle]) -> None:
    """Take hooks off their modules."""
    for handle in handles:
        handle.remove()


def is_compiled(model: nn.Module) -> bool:
    """Whether a model is what `torch.compile` returns."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)
