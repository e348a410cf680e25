"""Record calls of layers: their inputs, and where gradients in their outputs can be asked for.

A forward hook notes each call of a layer: its input and the place of its output in the autograd
graph. The place is taken before anything after the layer can modify the output, so activations that
work in place do no harm, and gradients with respect to it can be asked for as often as needed.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclasses.dataclass(slots=True)
class Call:
    """One call of a layer in a forward pass.

    Attributes:
        layer: Name of the layer (its path in the model).
        module: The layer.
        inputs: The layer's first argument, detached; not copied.
        edge: The output's place in the graph, or None where no gradient flows.
        shape: Shape of the output.
    """

    layer: str
    module: nn.Module
    inputs: Tensor
    edge: GradientEdge | None
    shape: torch.Size


class Capture:
    """Calls of chosen layers during forward passes, in order.

    Made by `capture`; holds what was seen until `clear`. Gradients in the outputs of the calls are
    `torch.autograd.grad` at their edges, which can be asked for as often as needed.

    Attributes:
        calls: One entry a call; a layer that is used twice appears twice.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.enabled = True

    def clear(self) -> None:
        """Forget all calls and let go of their graphs."""
        self.calls.clear()


def _by_type(types: tuple[type[nn.Module], ...]) -> Callable[[nn.Module], bool]:
    return lambda module: isinstance(module, types)


@contextlib.contextmanager
def capture(
    model: nn.Module,
    layers: Sequence[type[nn.Module]] | Callable[[nn.Module], bool] = (nn.Linear, nn.Conv2d),
) -> Iterator[Capture]:
    """Record the calls of a model's layers while the context is open.

    Args:
        model: The model whose forward passes are watched.
        layers: Which submodules: their types, or a function that says yes.

    Yields:
        A `Capture`, filled by every forward pass while `enabled`.
    """
    record = Capture()
    handles = attach(model, layers if callable(layers) else _by_type(tuple(layers)), record)
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def attach(
    model: nn.Module, wanted: Callable[[nn.Module], bool], record: Capture
) -> list[torch.utils.hooks.RemovableHandle]:
    """Install the hooks behind `capture` for as long as their handles are kept.

    Args:
        model: The model to watch.
        wanted: Says which submodules.
        record: Where the calls go.

    Returns:
        Handles; removing them ends the recording.
    """

    def watch(name: str) -> Callable[[nn.Module, tuple, dict, Any], Tensor | None]:
        def hook(module: nn.Module, arguments: tuple, named: dict, output: Any) -> Tensor | None:
            if not record.enabled:
                return None
            first = next(iter((*arguments, *named.values())), None)
            if not isinstance(first, Tensor) or not isinstance(output, Tensor):
                raise TypeError(
                    f"only layers from one tensor to one tensor can be captured, {name} "
                    f"({type(module).__name__}) goes from {type(first).__name__} to "
                    f"{type(output).__name__}; leave it out"
                )
            replaced = None
            if output.requires_grad and _is_view_of_its_own(output, first):
                # Torch's linear layer returns a view for inputs with several axes. An in-place
                # activation would reroute the gradient past the view's place in the graph.
                output = replaced = output.clone()
            edge = get_gradient_edge(output) if output.requires_grad else None
            record.calls.append(Call(name, module, first.detach(), edge, output.shape))
            return replaced

        return hook

    return [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in model.named_modules()
        if wanted(module)
    ]


def _is_view_of_its_own(output: Tensor, inputs: Tensor) -> bool:
    """Tell whether an output is a view of memory that the layer itself took, not of its inputs."""
    base = output._base
    return base is not None and base is not inputs and base is not inputs._base
