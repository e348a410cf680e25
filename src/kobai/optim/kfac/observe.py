"""Forward passes of the user's loop, kept so that the optimizer can repeat them.

To measure what a step does to a minibatch, the model has to be called on it again. Hooks on the
model keep what a forward pass was called with, what it returned, the gradient that the backward
pass brought to its outputs, and the state of the random generators, so that a repetition with the
same parameters returns the same: dropout has the same masks, and batch normalisation in training
mode the statistics of the same batch, of whose dependence on the parameters a repetition takes
account. Buffers (running averages) are put back afterwards.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.optim.model_hooks import ModelHook, is_training_pass, remove_hooks
from kobai.problem import output_tensor


@dataclasses.dataclass(slots=True, weakref_slot=True, eq=False)
class Pass:
    """One forward pass and the gradient of the loss in its outputs.

    Attributes:
        arguments: Positional arguments of the model; not copied.
        named: Keyword arguments.
        versions: Versions of the tensors among them.
        random: States of the random generators before the pass, CPU first.
        autocast: Device type and precision where autocast was on.
        outputs: What it returned, a copy.
        gradient: ∂L/∂outputs, or None before the backward pass.
        task: Number of the backward pass that brought it.
    """

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    versions: list[int]
    random: list[Tensor]
    autocast: tuple[str, torch.dtype] | None
    outputs: Tensor
    gradient: Tensor | None = None
    task: int = -1

    @property
    def intact(self) -> bool:
        """Whether the inputs are still what the model was called with."""
        return self.versions == _versions(self.arguments, self.named)

    def tensors(self) -> list[Tensor]:
        """The tensors the model was called with."""
        return _tensors(self.arguments, self.named)


def _tensors(arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Tensor]:
    return [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]


def _versions(arguments: tuple[Any, ...], named: dict[str, Any]) -> list[int]:
    return [value._version for value in _tensors(arguments, named)]


@final
class PassWatch:
    """Keeps the forward passes of a model that gradients are asked of, while `due`.

    Args:
        model: The model, whose `__call__` the user's loop runs.

    Attributes:
        due: Whether the coming passes are kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.due = True
        self._passes: list[Pass] = []
        self._random: list[Tensor] = []
        handles = [
            model.register_forward_pre_hook(ModelHook(self, "_before"), with_kwargs=True),
            model.register_forward_hook(ModelHook(self, "_after"), with_kwargs=True),
        ]
        self._finalizer = weakref.finalize(self, remove_hooks, handles)

    def close(self) -> None:
        """Remove the hooks and let go of everything kept."""
        self._finalizer()
        self._passes.clear()

    def take(self) -> list[Pass]:
        """The passes since the last call that a backward pass has reached."""
        passes = [one for one in self._passes if one.gradient is not None]
        self._passes = []
        return passes

    def _before(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.due and is_training_pass(self.model):
            self._random = _random_states(_devices(self.model))

    def _after(self, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        if not (self.due and is_training_pass(self.model)):
            return
        outputs = output_tensor(result)
        if not outputs.requires_grad:
            return
        kind = outputs.device.type
        one = Pass(
            arguments=arguments,
            named=named,
            versions=_versions(arguments, named),
            random=self._random,
            autocast=(kind, torch.get_autocast_dtype(kind))
            if torch.is_autocast_enabled(kind)
            else None,
            outputs=outputs.detach().clone(),
        )
        self._passes.append(one)
        waiting = weakref.ref(one)

        def arrived(gradient: Tensor) -> None:
            # Backward passes made inside this one, for statistics, go through here as well, perhaps
            # sooner; the outermost has the lowest number.
            kept, task = waiting(), torch._C._current_graph_task_id()
            if kept is not None and (kept.gradient is None or task < kept.task):
                kept.gradient, kept.task = gradient.detach().clone(), task

        outputs.register_hook(arrived)


def _devices(model: nn.Module) -> list[torch.device]:
    """The accelerators that a model's random numbers may come from."""
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)


def _random_states(devices: list[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


@torch.no_grad()
def repeat(model: nn.Module, passes: Sequence[Pass]) -> list[Tensor]:
    """The outputs of the same passes with the parameters as they are now.

    Neither buffers nor the states of random generators are changed. Cost: the forward passes.
    """
    devices = _devices(model)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    outputs = []
    with torch.random.fork_rng([device.index or 0 for device in devices]):
        for one in passes:
            torch.set_rng_state(one.random[0])
            for device, state in zip(devices, one.random[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            precision = contextlib.nullcontext()
            if one.autocast is not None:
                precision = torch.autocast(one.autocast[0], dtype=one.autocast[1])
            with precision:
                outputs.append(output_tensor(model(*one.arguments, **one.named)).clone())
    for buffer, kept in buffers:
        buffer.copy_(kept)
    return outputs


@contextlib.contextmanager
def moved(
    parameters: Sequence[Tensor], step: Sequence[Tensor], scale: float = 1.0
) -> Iterator[None]:
    """Parameters moved by scale · step while the context is open; then put back to the bit."""
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, d in zip(parameters, step, strict=True):
            p.add_(d, alpha=scale)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)
