"""Curvature statistics gathered inside the user's own ``loss.backward()``.

When statistics are due, a forward pass of the model notes the inputs of its layers and where their
outputs sit in the autograd graph, and a hook on the model's output waits. When the user's backward
pass arrives there, the graph is complete and still whole: a second, partial backward pass pulls
kobai's own cotangents (scores at labels drawn from the model) back to the layers, without touching
any parameter's gradient. What the user's loss is scaled by never matters.
"""

import dataclasses
import weakref
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kobai.curvature.kronecker import input_moment, output_moment
from kobai.optim.cotangents import Labels, cotangents
from kobai.optim.coverage import Plan
from kobai.problem import Call, Capture, Likelihood, attach, output_tensor


@dataclasses.dataclass(slots=True, eq=False)
class LayerSums:
    """Sums of one Kronecker layer over passes.

    Attributes:
        inputs: Σ a aᵀ, (G, K, K), or None before the first.
        rows: Number of rows in it.
        outputs: Σ g gᵀ, (G, M, M), or None before the first.
    """

    inputs: Tensor | None = None
    rows: int = 0
    outputs: Tensor | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Sums:
    """What backward passes have gathered since it was last taken.

    Attributes:
        layers: By position in the plan; layers that took no part are absent.
        diagonals: Σ over passes of squared scores, by position in the plan.
        weight: Normaliser: examples or terms seen.
        passes: Number of backward passes.
        bypassed: Layers whose parameters were used although the module was not called.
    """

    layers: dict[int, LayerSums] = dataclasses.field(default_factory=dict)
    diagonals: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    weight: float = 0.0
    passes: int = 0
    bypassed: set[int] = dataclasses.field(default_factory=set)


class _InertHook:
    """What a hook becomes in a copy of the model: nothing."""

    def __call__(self, *arguments: Any) -> None:
        return None


@final
class _Hook:
    """A module hook that works on its own model only and does not keep the optimizer alive.

    Copies and pickles of the model (weight averaging, `torch.save`) get an inert one.
    """

    def __init__(self, owner: "BackwardStatistics", member: str) -> None:
        self._owner = weakref.ref(owner)
        self._member = member

    def __call__(self, module: nn.Module, *arguments: Any) -> None:
        owner = self._owner()
        if owner is not None and owner.model is module:
            getattr(owner, self._member)(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_InertHook, ())


@dataclasses.dataclass(slots=True, eq=False)
class _Pass:
    """A forward pass whose backward pass is awaited."""

    number: int
    edge: GradientEdge
    outputs: Tensor
    version: int


def factor_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of second moments: the parameters' own, but at least float32."""
    return torch.promote_types(dtype, torch.float32)


@final
class BackwardStatistics:
    """Watches a model and gathers K-FAC statistics in backward passes while `due`.

    Passes without gradients do nothing. A pass with gradients but without a backward pass holds its
    activations until the next forward pass or `take`; of several forward passes before one backward
    pass the last counts. A module called twice, or several that share their weight, have their
    sums added, as for a layer that is applied at several places.

    Args:
        model: The model, whose `__call__` the user's loop runs.
        likelihood: What its outputs mean.
        plan: The blocks to gather for.
        labels: See `kobai.optim.cotangents.cotangents`.
        output_damping: Its `damping`.
        generator: Draws labels.

    Attributes:
        due: Whether the next forward and backward pass gathers statistics.
        seen: Number of backward passes that gathered statistics, ever.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        plan: Plan,
        *,
        labels: Labels,
        output_damping: float,
        generator: torch.Generator,
    ) -> None:
        self.model = model
        self.likelihood = likelihood
        self.plan = plan
        self.labels: Labels = labels
        self.output_damping = output_damping
        self.generator = generator
        self.due = True
        self.seen = 0
        self._sums = Sums()
        self._record = Capture()
        self._layer_handles: list[torch.utils.hooks.RemovableHandle] = []
        self._number = 0
        self._pass: _Pass | None = None
        self._recording = False
        self._layers = {
            path: (position, module)
            for position, layer in enumerate(plan.layers)
            for path, module in layer.modules
        }
        self._modules = {module for _, module in self._layers.values()}
        handles = [
            model.register_forward_pre_hook(_Hook(self, "_before")),
            model.register_forward_hook(_Hook(self, "_after"), with_kwargs=True, always_call=True),
        ]
        self._finalizer = weakref.finalize(self, _remove, handles)

    def close(self) -> None:
        """Remove all hooks from the model and let go of everything gathered."""
        self._finalizer()
        self._forget()
        self._sums = Sums()

    def take(self) -> Sums:
        """What was gathered since the last call; lets go of a pass without a backward pass."""
        self._forget()
        sums, self._sums = self._sums, Sums()
        return sums

    def _forget(self) -> None:
        self._stop_recording()
        self._record.clear()
        self._pass = None

    def _stop_recording(self) -> None:
        for handle in self._layer_handles:
            handle.remove()
        self._layer_handles.clear()
        self._recording = False

    def _before(self, arguments: tuple[Any, ...]) -> None:
        """Before a forward pass: note its layers if statistics are due and gradients on."""
        del arguments
        self._stop_recording()
        if not (self.due and torch.is_grad_enabled()):
            return
        self._record.clear()
        self._pass = None
        self._recording = True
        # A model that is itself a layer is noted by `_after`, which runs before hooks added now.
        layers = self._modules - {self.model}
        self._layer_handles += attach(self.model, layers.__contains__, self._record)

    def _after(self, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        """After a forward pass: wait for the gradient of its output."""
        recording = self._recording
        self._stop_recording()
        if not recording:
            return
        if result is None:  # the forward pass raised
            self._record.clear()
            return
        outputs = output_tensor(result)
        if not outputs.requires_grad:
            self._record.clear()
            return
        if self.model in self._modules:
            first = arguments[0] if arguments else next(iter(named.values()))
            edge = get_gradient_edge(outputs)
            self._record.calls.append(Call("", self.model, first.detach(), edge, outputs.shape))
        self._number += 1
        number = self._number
        detached = outputs.detach()
        self._pass = _Pass(number, get_gradient_edge(outputs), detached, detached._version)
        # The graph owns this hook and the hook must not own the graph.
        owner = weakref.ref(self)

        def arrived(gradient: Tensor) -> None:
            statistics = owner()
            if statistics is not None:
                statistics._backward(number, gradient)

        outputs.register_hook(arrived)

    def _backward(self, number: int, gradient: Tensor) -> None:
        """The user's backward pass has reached the output of forward pass `number`."""
        awaited = self._pass
        if awaited is None or awaited.number != number:
            return
        self._pass = None  # the passes that follow here arrive at this hook as well
        if awaited.outputs._version != awaited.version:
            raise RuntimeError(
                "the model's output was changed in place after the forward pass, so the Fisher "
                "matrix there cannot be known; use an out-of-place operation on the output"
            )
        try:
            with torch.no_grad():
                self._gather(awaited, gradient)
        finally:
            self._forget()

    def _gather(self, awaited: _Pass, gradient: Tensor) -> None:
        plan, sums, calls = self.plan, self._sums, self._record.calls
        outputs = awaited.outputs
        weight, columns = cotangents(
            self.likelihood,
            self.labels,
            outputs.to(factor_dtype(outputs.dtype)),
            gradient.to(factor_dtype(outputs.dtype)),
            damping=self.output_damping,
            generator=self.generator,
            signs=bool(plan.diagonals),
        )
        if weight <= 0:
            return
        called = [call for call in calls if call.edge is not None]
        edges = [call.edge for call in called if call.edge is not None]
        others = [i for i, e in enumerate(plan.diagonals) if e.parameter.requires_grad]
        present = {self._layers[call.layer][0] for call in calls}
        absent = [
            i for i, e in enumerate(plan.layers) if i not in present and e.weight.requires_grad
        ]
        wanted = [
            *edges,
            *(plan.diagonals[i].parameter for i in others),
            *(plan.layers[i].weight for i in absent),
        ]
        if not wanted:
            return
        used: set[int] = set()
        for column in columns:
            found = torch.autograd.grad(
                [awaited.edge],
                wanted,
                [column.to(outputs.dtype)],
                retain_graph=True,
                allow_unused=True,
            )
            for index, (call, g) in enumerate(zip(called, found, strict=False)):
                if g is None:
                    continue
                position, module = self._layers[call.layer]
                layer = plan.layers[position]
                entry = sums.layers.setdefault(position, LayerSums())
                dtype = factor_dtype(layer.weight.dtype)
                moment = output_moment(module, layer.form, g.to(dtype))
                entry.outputs = _plus(entry.outputs, moment)
                if index not in used:
                    moment, rows = input_moment(module, layer.form, call.inputs.to(dtype))
                    entry.inputs = _plus(entry.inputs, moment)
                    entry.rows += rows
                    used.add(index)
            found = found[len(edges) :]
            for position, g in zip(others, found, strict=False):
                if g is not None:
                    square = g.to(factor_dtype(g.dtype)).square()
                    sums.diagonals[position] = _plus(sums.diagonals.get(position), square)
            for position, g in zip(absent, found[len(others) :], strict=True):
                if g is not None:
                    sums.bypassed.add(position)
        sums.weight += weight
        sums.passes += 1
        self.seen += 1


def _plus(known: Tensor | None, new: Tensor) -> Tensor:
    return new if known is None else known.add_(new)


def _remove(handles: list[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
