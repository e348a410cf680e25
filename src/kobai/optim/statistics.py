"""Curvature statistics gathered inside the user's own ``loss.backward()``.

When statistics are due, a forward pass of the model notes the inputs of its layers and where their
outputs sit in the autograd graph, and a hook on the model's output waits. When the user's backward
pass arrives there, the graph is complete and still whole: a second, partial backward pass pulls
kobai's own cotangents (scores at labels drawn from the model) back to the layers, without touching
any parameter's gradient. What the user's loss is scaled by never matters.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kobai.curvature.factor_sums import FactorSums, Sharing, turned_squares
from kobai.layers import Call, LayerUse, Watch, scale_rows
from kobai.layers.moments import rounded_rows
from kobai.optim.averages import factor_dtype
from kobai.optim.cotangents import Labels, cotangents
from kobai.optim.coverage import Plan
from kobai.optim.gradient_rows import RowWatch
from kobai.optim.model_hooks import ModelHook, is_compiled, is_training_pass, remove_hooks
from kobai.optim.statistics_part import TRACED_EXAMPLES, StatisticsExamples, part_of
from kobai.problem import Likelihood, output_tensor

Bases = dict[int, tuple[Tensor, Tensor | None]]
"""Eigenbases by position in the plan; see `kobai.optim.blocks.Blocks.bases`."""


@dataclasses.dataclass(slots=True, eq=False)
class Sums:
    """What backward passes have gathered since it was last taken.

    Attributes:
        layers: Factors by position in the plan's layers; layers that took no part are absent.
        squares: Second moments in eigenbases, by the same position, where those were asked for.
        units: Σ of the outer products of each unit's rows, (U, k, k), by position in its units.
        diagonals: Σ over passes of squared scores, by position in the plan.
        weight: Normaliser: examples or terms seen.
        passes: Number of backward passes.
        bypassed: Names of parameters that were used although their module was not called.
    """

    layers: dict[int, FactorSums] = dataclasses.field(default_factory=dict)
    squares: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    units: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    diagonals: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    weight: float = 0.0
    passes: int = 0
    bypassed: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(slots=True, eq=False)
class _Pass:
    """A forward pass whose backward pass is awaited."""

    number: int
    edge: GradientEdge
    outputs: Tensor
    version: int


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
        sharing: How places under weight sharing are taken, "expand", "trace" or "reduce".
        statistics_examples: How many examples of a batch Kronecker factors are summed over; see
            `kobai.optim.statistics_part.part_of`.
        distributed: Whether processes draw labels each for examples of their own.
        bases: Gives the eigenbases in which second moments are wanted (EKFAC).
        rows: Another watch of the same passes, which is to leave out those made here.
        precision: Of sums for Kronecker factors; default: that of the parameters, but at least
            float32. Where it is given nothing is rounded.
        rounded: Whether rows in float32 on a CPU that multiplies bfloat16 matrices are rounded for
            the factors; see `kobai.layers.moments.rounded_rows`.

    Attributes:
        due: Whether the next forward and backward pass gathers statistics.
        turns: Number of times that statistics were taken, ever.
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
        sharing: Sharing = "expand",
        statistics_examples: StatisticsExamples = "all",
        distributed: bool = False,
        bases: Callable[[], Bases] | None = None,
        rows: RowWatch | None = None,
        precision: torch.dtype | None = None,
        rounded: bool = True,
    ) -> None:
        self.model = model
        self.likelihood = likelihood
        self.plan = plan
        self.labels: Labels = labels
        self.output_damping = output_damping
        self.generator = generator
        self.sharing: Sharing = sharing
        self.statistics_examples: StatisticsExamples = statistics_examples
        self.distributed = distributed
        self._bases = bases
        self._rows = rows
        self.precision = precision
        self.rounded = rounded and precision is None
        self.due = True
        self.turns = 0
        self._sums = Sums()
        self._noted = Watch()
        self._layer_handles: list[torch.utils.hooks.RemovableHandle] = []
        self._number = 0
        self._pass: _Pass | None = None
        self._recording = False
        self._forced = False
        # Weight and bias of one matrix may have blocks of their own.
        self._layers: dict[tuple[str, str], list[int]] = {}
        for position, layer in enumerate(plan.layers):
            for (path, _), slot in zip(layer.modules, layer.slots, strict=True):
                self._layers.setdefault((path, slot), []).append(position)
        self._units = {unit.name: position for position, unit in enumerate(plan.units)}
        self._modules = {module for layer in plan.layers for _, module in layer.modules}
        self._modules |= {unit.module for unit in plan.units}
        handles = [
            model.register_forward_pre_hook(ModelHook(self, "_before")),
            model.register_forward_hook(
                ModelHook(self, "_after"), with_kwargs=True, always_call=True
            ),
        ]
        self._finalizer = weakref.finalize(self, remove_hooks, handles)

    def close(self) -> None:
        """Remove all hooks from the model and let go of everything gathered."""
        self._finalizer()
        self._forget()
        self._sums = Sums()

    def take(self) -> Sums:
        """What was gathered since the last call; lets go of a pass without a backward pass."""
        self._forget()
        sums, self._sums = self._sums, Sums()
        self.turns += sums.passes > 0
        return sums

    def _forget(self) -> None:
        self._stop_recording()
        self._noted.clear()
        self._pass = None

    def _stop_recording(self) -> None:
        for handle in self._layer_handles:
            handle.remove()
        self._layer_handles.clear()
        self._recording = False
        if self._forced:
            torch.compiler.set_stance("default")
            self._forced = False

    def _before(self, arguments: tuple[Any, ...]) -> None:
        """Before a forward pass: note its layers if statistics are due and gradients on."""
        del arguments
        self._stop_recording()
        if not (self.due and is_training_pass(self.model)):
            return
        self._noted.clear()
        self._pass = None
        self._recording = True
        if is_compiled(self.model):
            # Compiled code does not run hooks of the layers: this pass runs as it was written.
            torch.compiler.set_stance("force_eager")
            self._forced = True
        # A model that is itself a layer is noted by `_after`, which runs before hooks added now.
        layers = self._modules - {self.model}
        self._layer_handles += self._noted.attach(self.model, layers)

    def _after(self, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        """After a forward pass: wait for the gradient of its output."""
        recording = self._recording
        self._stop_recording()
        if not recording:
            return
        if result is None:  # the forward pass raised
            self._noted.clear()
            return
        outputs = output_tensor(result)
        if not outputs.requires_grad:
            self._noted.clear()
            return
        if self.model in self._modules:
            first = arguments[0] if arguments else next(iter(named.values()))
            edge = get_gradient_edge(outputs)
            self._noted.simple.calls.append(
                Call("", self.model, first.detach(), edge, outputs.shape)
            )
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
        if self._rows is not None:
            self._rows.paused = True
        try:
            with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
                self._gather(awaited, gradient)
        finally:
            self._forget()
            if self._rows is not None:
                self._rows.paused = False

    def _gather(self, awaited: _Pass, gradient: Tensor) -> None:
        plan, sums = self.plan, self._sums
        outputs = awaited.outputs
        dtype = factor_dtype(outputs.dtype)
        weight, columns = cotangents(
            self.likelihood,
            self.labels,
            outputs.to(dtype),
            gradient.to(dtype),
            damping=self.output_damping,
            generator=self._draws(),
            signs=bool(plan.diagonals),
        )
        if weight <= 0:
            return
        edges = self._noted.edges
        others = [i for i, e in enumerate(plan.diagonals) if e.parameter.requires_grad]
        absent = self._absent()
        wanted = [*edges, *(plan.diagonals[i].parameter for i in others), *(p for _, p in absent)]
        if not wanted:
            return
        bases = {} if self._bases is None else self._bases()
        for number, column in enumerate(columns):
            found = _pulled_back(awaited.edge, wanted, column.to(outputs.dtype))
            by_position: dict[int, list[LayerUse]] = {}
            for use in self._noted.uses(found[: len(edges)]):
                unit = self._units.get(use.layer)
                if unit is not None:
                    self._add_unit(unit, use, len(outputs))
                    continue
                for position in self._layers.get((use.layer, use.slot), ()):
                    by_position.setdefault(position, []).append(use)
            for position, uses in by_position.items():
                self._add_layer(position, uses, len(outputs), number == 0, bases.get(position))
            rest = found[len(edges) :]
            for position, g in zip(others, rest, strict=False):
                if g is not None:
                    square = g.to(factor_dtype(g.dtype)).square()
                    sums.diagonals[position] = _plus(sums.diagonals.get(position), square)
            for (names, _), g in zip(absent, rest[len(others) :], strict=True):
                if g is not None:
                    sums.bypassed.update(names)
        sums.weight += weight
        sums.passes += 1

    def _draws(self) -> torch.Generator:
        """The generator; of several processes each has draws of its own, the state in common."""
        if not (self.distributed and dist.is_available() and dist.is_initialized()):
            return self.generator
        device = self.generator.device
        seed = torch.randint(2**62, (), generator=self.generator, device=device, dtype=torch.int64)
        return torch.Generator(device).manual_seed(int(seed) + dist.get_rank())

    def _add_layer(
        self, position: int, uses: list[LayerUse], examples: int, first: bool,
        basis: tuple[Tensor, Tensor | None] | None,
    ) -> None:  # fmt: skip
        layer = self.plan.layers[position]
        uses, examples = part_of(
            layer.form, uses, examples, self.statistics_examples, self.turns,
            reduced=self.sharing == "reduce",
        )  # fmt: skip
        dtype = factor_dtype(layer.weight.dtype)
        if self.precision is not None and not layer.form.lookup:
            dtype = self.precision
        rounded = self.rounded and all(use.reading.worth_rounding for use in uses)
        with rounded_rows() if rounded else contextlib.nullcontext():
            self._sums.layers.setdefault(position, FactorSums()).add(
                layer.form,
                uses,
                examples=examples,
                sharing=self.sharing,
                dtype=dtype,
                inputs=first,
                traced=TRACED_EXAMPLES if self.statistics_examples == "auto" else None,
            )
        if basis is not None:
            kept = factor_dtype(layer.weight.dtype)
            squares = turned_squares(layer.form, uses, examples, kept, *basis)
            self._sums.squares[position] = _plus(self._sums.squares.get(position), squares)

    def _add_unit(self, position: int, use: LayerUse, examples: int) -> None:
        unit = self.plan.units[position]
        gradients = use.gradients.to(factor_dtype(unit.tensors[0].dtype))
        rows = scale_rows(unit.module, unit.attributes, use.inputs, gradients, examples)
        if rows is None:
            raise ValueError(
                f"{unit.name} ({type(unit.module).__name__}): its inputs do not divide into the "
                f"{examples} examples of the model's output"
            )
        columns = rows.flatten(0, 1).transpose(0, 1)
        moments = columns.mT @ columns
        self._sums.units[position] = _plus(self._sums.units.get(position), moments)

    def _absent(self) -> list[tuple[tuple[str, ...], nn.Parameter]]:
        """Parameters whose modules were not called, so that any use of them was missed."""
        called = self._noted.layers
        seen = {p for (path, _), own in self._layers.items() if path in called for p in own}
        layers = [
            (layer.parameters, layer.weight)
            for position, layer in enumerate(self.plan.layers)
            if position not in seen
        ]
        units = [
            (unit.parameters, unit.tensors[0])
            for unit in self.plan.units
            if unit.name not in called
        ]
        return [(names, p) for names, p in (*layers, *units) if p.requires_grad]


def _pulled_back(root: GradientEdge, wanted: list[Any], column: Tensor) -> Sequence[Tensor | None]:
    """Gradients of ⟨outputs, column⟩; the user's own pass, which is under way, keeps its graph."""
    try:
        return torch.autograd.grad([root], wanted, [column], retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "heckpoint" in str(error):
            raise RuntimeError(
                "activation checkpointing in its reentrant form allows no second backward pass, "
                "which curvature statistics take; call torch.utils.checkpoint.checkpoint with "
                "use_reentrant=False"
            ) from error
        raise


def _plus(known: Tensor | None, new: Tensor) -> Tensor:
    return new if known is None else known.add_(new)
