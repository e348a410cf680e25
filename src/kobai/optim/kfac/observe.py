"""An optimizer sees the user's loop: every forward pass that a backward pass goes through.

One pair of hooks on the model notes, as far as somebody wants it,

- what the layers multiplied, for curvature statistics: when the user's backward pass arrives at the
  model's output the graph is complete and still whole, and `kobai.optim.kfac.statistics` pulls
  cotangents of its own back through it, without touching any parameter's gradient;
- the rows whose products the layers' gradients are (`kobai.optim.kfac.gradient_rows`);
- how to run the pass again (`kobai.optim.kfac.minibatch`): what it was called with, what it
  returned, the gradient that came back, and the state of the random generators.
"""

import dataclasses
import sys
import weakref
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kobai.layers import Call, Watch
from kobai.optim.kfac.gradient_rows import RowNotes
from kobai.optim.kfac.plan import Plan
from kobai.optim.kfac.statistics import Statistics, Sums
from kobai.problem import output_tensor


@dataclasses.dataclass(slots=True, weakref_slot=True, eq=False)
class ForwardPass:
    """One forward pass and the gradient of the loss in its outputs.

    Attributes:
        arguments: Positional arguments of the model; not copied.
        named: Keyword arguments.
        versions: Versions of the tensors among them.
        outputs: What it returned; a copy if the pass is kept.
        edge: Where the outputs sit in the autograd graph.
        version: Version of what it returned.
        random: States of the random generators before the pass, CPU first; None unless it is kept.
        autocast: Device type and precision where autocast was on.
        calls: Calls of its layers, while statistics are awaited from it.
        gradient: ∂L/∂outputs, or None before the backward pass, or if the pass is not kept.
        task: Number of the backward pass that brought it.
    """

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    versions: list[int]
    outputs: Tensor
    edge: GradientEdge | None
    returned: Tensor
    version: int
    random: list[Tensor] | None
    autocast: tuple[str, torch.dtype] | None
    calls: Watch | None = None
    gradient: Tensor | None = None
    task: int = -1

    @property
    def intact(self) -> bool:
        """Say whether the inputs are still what the model was called with."""
        return self.versions == _versions(self.arguments, self.named)

    def tensors(self) -> list[Tensor]:
        """Return the tensors the model was called with."""
        return _tensors(self.arguments, self.named)


@final
@dataclasses.dataclass(slots=True, eq=False)
class Observation:
    """Holds what a step's forward and backward passes have shown.

    Attributes:
        passes: Those that a backward pass has reached, as far as they were kept.
        sums: Second moments for the blocks.
        gathered: Whether second moments were wanted.
    """

    passes: list[ForwardPass]
    sums: Sums
    gathered: bool


@final
class Observer:
    """Watches the passes of a model for one optimizer.

    Passes without gradients, or with other tensors in the parameters' places, are not those of a
    training loop and leave nothing. Statistics come from the last of several forward passes before
    a backward pass; a pass without a backward pass holds its activations until the next one, or
    until `take`.

    Args:
        model: The model, whose `__call__` the user's loop runs.
        statistics: Makes second moments of what was seen.
        rows: Rows of gradients that are to be noted, or None.

    Attributes:
        gathers: Whether the coming passes are for statistics.
        keeps: Whether the coming passes are kept, so that they can be run again.
        paused: Whether passes at present are not those of the user's loop.
    """

    def __init__(self, model: nn.Module, statistics: Statistics, rows: RowNotes | None) -> None:
        self.model = model
        self.statistics = statistics
        self.rows = rows
        self.gathers, self.keeps, self.paused = True, False, False
        self._passes: list[ForwardPass] = []
        self._awaited: ForwardPass | None = None
        self._begun: Watch | None = None
        self._random: list[Tensor] | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._eager = False
        handles = [
            model.register_forward_pre_hook(_ModelHook(self, "_before"), with_kwargs=True),
            model.register_forward_hook(
                _ModelHook(self, "_after"), with_kwargs=True, always_call=True
            ),
        ]
        self._finalizer = weakref.finalize(self, _remove, handles)

    def close(self) -> None:
        """Remove all hooks from the model and let go of everything seen."""
        self._finalizer()
        self.take()
        if self.rows is not None:
            self.rows.forget()

    def take(self) -> Observation:
        """Return what was seen since the last call, and let go of it."""
        passes = [one for one in self._passes if one.gradient is not None]
        self._end_layers()
        self._passes, self._awaited = [], None
        sums = self.statistics.take() if self.gathers else Sums()
        return Observation(passes, sums, self.gathers)

    def watch(self, plan: Plan) -> None:
        """Gather statistics for another plan from now on; what is under way is forgotten."""
        self._end_layers()
        self._awaited = None
        self.statistics.watch(plan)

    def _end_layers(self) -> None:
        """Take the hooks off the layers, after a forward pass or before the next one."""
        _remove(self._handles)
        self._handles.clear()
        self._begun = self._random = None
        if self._eager:
            torch.compiler.set_stance("default")
            self._eager = False

    def _before(self, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before a forward pass: note what somebody will ask for."""
        self._end_layers()
        if self.paused or not is_training_pass(self.model):
            return
        if self.keeps:
            self._random = random_states(self.model)
        compiled = is_compiled(self.model)
        noted = self.rows is not None and self.rows.layers
        if self.rows is not None and noted and not (compiled or torch.compiler.is_compiling()):
            self._handles += self.rows.attach(self.model)
        if self.gathers:
            self._awaited, self._begun = None, Watch()
            if compiled:
                # Compiled code does not run hooks of the layers: this pass runs as it was written.
                torch.compiler.set_stance("force_eager")
                self._eager = True
            # A model that is itself a layer is noted by `_after`: it runs before hooks added now.
            layers = self.statistics.modules - {self.model}
            self._handles += self._begun.attach(self.model, layers)

    def _after(self, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        """After a forward pass: wait for the gradient of its output."""
        calls, random = self._begun, self._random
        self._end_layers()
        if (calls is None and random is None) or result is None:  # None: the forward pass raised
            return
        outputs = output_tensor(result)
        if not outputs.requires_grad:
            return
        edge = get_gradient_edge(outputs)
        if calls is not None and self.model in self.statistics.modules:
            first = arguments[0] if arguments else next(iter(named.values()))
            calls.simple.calls.append(Call("", self.model, first.detach(), edge, outputs.shape))
        kind, detached = outputs.device.type, outputs.detach()
        autocast = torch.is_autocast_enabled(kind)
        one = ForwardPass(
            arguments=arguments,
            named=named,
            versions=_versions(arguments, named),
            outputs=detached if random is None else detached.clone(),
            edge=edge if calls is not None else None,
            returned=detached,
            version=detached._version,
            random=random,
            autocast=(kind, torch.get_autocast_dtype(kind)) if autocast else None,
            calls=calls,
        )
        if random is not None:
            self._passes.append(one)
        if calls is not None:
            self._awaited = one
        # The graph owns this hook and the hook must not own the graph.
        owner, waiting = weakref.ref(self), weakref.ref(one)

        def arrived(gradient: Tensor) -> None:
            observer, seen = owner(), waiting()
            if observer is not None and seen is not None:
                observer._arrived(seen, gradient)

        outputs.register_hook(arrived)

    def _arrived(self, one: ForwardPass, gradient: Tensor) -> None:
        """The user's backward pass has reached the output of a forward pass."""
        # Backward passes made inside this one, for statistics, go through here as well, perhaps
        # sooner; the outermost has the lowest number.
        task = torch._C._current_graph_task_id()
        if one.random is not None and (one.gradient is None or task < one.task):
            one.gradient, one.task = gradient.detach().clone(), task
        if one is not self._awaited:
            return
        self._awaited = None
        if one.returned._version != one.version:
            raise RuntimeError(
                "the model's output was changed in place after the forward pass, so the Fisher "
                "matrix there cannot be known; use an out-of-place operation on the output"
            )
        calls, edge, one.calls, one.edge = one.calls, one.edge, None, None
        assert calls is not None
        assert edge is not None
        if self.rows is not None:
            self.rows.paused = True
        try:
            with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                self.statistics.gather(calls, edge, one.returned, gradient)
        finally:
            if self.rows is not None:
                self.rows.paused = False


class _InertHook:
    """Does nothing: what a hook becomes in a copy of the model."""

    def __call__(self, *arguments: Any) -> None:
        return None


@final
class _ModelHook:
    """Calls its owner's method for its owner's model only, and does not keep the owner alive.

    Copies and pickles of the model (weight averaging, `torch.save`) get an inert one.
    """

    def __init__(self, owner: Observer, member: str) -> None:
        self._owner = weakref.ref(owner)
        self._member = member

    def __call__(self, module: nn.Module, *arguments: Any) -> None:
        owner = self._owner()
        if owner is not None and owner.model is module:
            getattr(owner, self._member)(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_InertHook, ())


def is_training_pass(model: nn.Module) -> bool:
    """Say whether a forward pass under way may be one of the training loop.

    Gradients are on and the model's own parameters are in their places: where curvature or a loss
    is asked of the model as a function of its parameters, other tensors are.
    """
    return torch.is_grad_enabled() and all(isinstance(p, nn.Parameter) for p in model.parameters())


def is_compiled(model: nn.Module) -> bool:
    """Say whether a model is what `torch.compile` returns."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(model, dynamo.OptimizedModule)


def accelerators(model: nn.Module) -> list[torch.device]:
    """Return the accelerators that a model's random numbers may come from."""
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)


def random_states(model: nn.Module) -> list[Tensor]:
    """Return the states of the random generators that a forward pass may draw from, CPU first."""
    return [
        torch.get_rng_state(),
        *(torch.cuda.get_rng_state(device) for device in accelerators(model)),
    ]


def _remove(handles: Iterable[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _tensors(arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Tensor]:
    return [value for value in (*arguments, *named.values()) if isinstance(value, Tensor)]


def _versions(arguments: tuple[Any, ...], named: dict[str, Any]) -> list[int]:
    return [value._version for value in _tensors(arguments, named)]
