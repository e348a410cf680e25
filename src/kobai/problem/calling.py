"""Calls of a model: from a batch to its arguments, from what it returns to one tensor."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from kobai.problem.batch import Batch


def call_arguments(batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Positional and keyword arguments a model is called with: tensor, tuple or mapping."""
    if isinstance(batch.inputs, Tensor):
        return (batch.inputs,), {}
    if isinstance(batch.inputs, tuple):
        return batch.inputs, {}
    return (), dict(batch.inputs)


def output_tensor(outputs: Any) -> Tensor:
    """The one tensor of outputs: itself, the entry "logits", or the only floating tensor.

    Raises:
        TypeError: If there is no such tensor or no telling which.
    """
    if isinstance(outputs, Tensor):
        return outputs
    mapping = isinstance(outputs, Mapping)
    logits = outputs.get("logits") if mapping else getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = list(outputs.values()) if mapping else outputs
    if isinstance(values, list | tuple):
        floating = [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]
        if len(floating) == 1:
            return floating[0]
    raise TypeError(
        "the model must return one tensor (or a mapping or object with 'logits'), got "
        f"{type(outputs).__name__}; wrap the model so that it returns its outputs"
    )


def buffer_copies(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every buffer for each place that holds it; a shared buffer stays shared."""
    copies: dict[int, Tensor] = {}
    places = {}
    for path, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False):
            if id(buffer) not in copies:
                copies[id(buffer)] = buffer.clone()
            places[f"{path}.{name}" if path else name] = copies[id(buffer)]
    return places


def call_with_copies(model: nn.Module, parameters: Mapping[str, Tensor], batch: Batch) -> Any:
    """Call the model with these parameters in place of its own.

    Buffers enter as copies, so that a module which writes to them cannot change itself.

    Args:
        model: The model, left as it is.
        parameters: Tensors by place (`ParameterSpace.places`); those left out are the model's own.
        batch: On the model's device.
    """
    args, kwargs = call_arguments(batch)
    state = {**parameters, **buffer_copies(model)}
    try:
        return functional_call(model, state, args, kwargs, tie_weights=False)
    finally:
        for part in model.modules():
            if isinstance(part, nn.RNNBase):
                # It keeps a list of the tensors it last ran with, and so their graph, and weak
                # references by which it notices other ones; both are renewed here.
                part._init_flat_weights()
