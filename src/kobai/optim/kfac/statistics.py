"""Second moments for curvature blocks, gathered inside the user's own ``loss.backward()``.

The user's backward pass has arrived at the model's output (`kobai.optim.kfac.observe`). A second,
partial backward pass pulls kobai's own cotangents (scores at labels drawn from the model) back to
the layers, without touching any parameter's gradient. What the user's loss is scaled by never
matters.

Factors are summed over part of a large batch: as many of its examples as a matrix of their size
needs. A factor is a moving average over some twenty to forty updates, so that one update need not
know its matrix well. With rows as many as the matrix has lines, the average is taken over tens of
times as many rows as lines. A batch may bring far more: a convolution has a row for every position
of every image, and summing them all costs more than the step itself.

Source of that idea: Martens and Grosse 2015, Optimizing neural networks with Kronecker-factored
approximate curvature (§8), who take an eighth of each minibatch.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from kobai.curvature.blocks import FactorSums
from kobai.curvature.blocks.factor_sums import turned_squares
from kobai.curvature.blocks.interface import factor_dtype
from kobai.curvature.rows import DenseRows
from kobai.curvature.rows.layer_calls import example_rows
from kobai.layers import LayerForm, LayerUse, Watch, scale_rows
from kobai.layers.moments import rounded_rows
from kobai.optim.kfac.cotangents import cotangents
from kobai.optim.kfac.plan import DiagonalParameter, KroneckerLayer, Plan, UnitLayer
from kobai.optim.kfac.preconditioner import Preconditioner
from kobai.optim.kfac.settings import KFACSettings, StatisticsExamples
from kobai.problem import Likelihood

FEWEST_EXAMPLES = 64
"""Rows of one example resemble each other: never fewer examples than these."""

FEWEST_ROWS = 256
"""Rows cost little for small matrices: never fewer than these."""

TRACED_EXAMPLES = 8
"""The trace of a block is one number: examples' gradients are written out for so many."""


@dataclasses.dataclass(slots=True, eq=False)
class Sums:
    """Sums that backward passes have gathered since they were last taken.

    Attributes:
        moments: By position in the plan, what the block of the entry averages: `FactorSums`, or a
            tensor; entries that took no part are absent.
        squares: Second moments in eigenbases, by position, where those are wanted.
        weight: Normaliser: examples or terms seen.
        passes: Number of backward passes.
        bypassed: Names of parameters that were used although their module was not called.
    """

    moments: dict[int, Any] = dataclasses.field(default_factory=dict)
    squares: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    weight: float = 0.0
    passes: int = 0
    bypassed: set[str] = dataclasses.field(default_factory=set)


@final
class Statistics:
    """Makes second moments of what a model's passes have shown.

    A module called twice, or several that share their weight, have their sums added, as for a layer
    that is applied at several places.

    Args:
        likelihood: What the model's outputs mean.
        settings: Labels, output damping, sharing and so on.
        plan: The plan that positions refer to.
        generator: Draws labels.
        blocks: Returns the blocks to gather for.

    Attributes:
        turns: Number of times that statistics were taken, ever.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        settings: KFACSettings,
        plan: Plan,
        generator: torch.Generator,
        blocks: Callable[[], Preconditioner],
    ) -> None:
        self.likelihood = likelihood
        self.settings = settings
        self.generator = generator
        # Where precision is asked for nothing is rounded.
        self.rounded = settings.product_precision is None and settings.precision is None
        self.turns = 0
        self._blocks = blocks
        self._sums = Sums()
        self.watch(plan)

    def watch(self, plan: Plan) -> None:
        """Gather for the entries of another plan from now on."""
        self.plan = plan
        self._sums = Sums()
        # Weight and bias of one matrix may have blocks of their own.
        self._slots: dict[tuple[str, str], list[int]] = {}
        for position, entry in enumerate(plan.entries):
            if isinstance(entry, KroneckerLayer):
                for (path, _), slot in zip(entry.modules, entry.slots, strict=True):
                    self._slots.setdefault((path, slot), []).append(position)
            elif isinstance(entry, UnitLayer):
                self._slots.setdefault((entry.name, ""), []).append(position)
        self.modules: set[nn.Module] = {
            module for layer in plan.layers for _, module in layer.modules
        }
        self.modules |= {unit.module for unit in plan.units}

    def take(self) -> Sums:
        """Return what was gathered since the last call."""
        sums, self._sums = self._sums, Sums()
        self.turns += sums.passes > 0
        return sums

    def gather(self, calls: Watch, edge: GradientEdge, outputs: Tensor, gradient: Tensor) -> None:
        """Add what one forward pass shows, while its graph is whole.

        Args:
            calls: What its layers were called with.
            edge: Where its outputs sit in the graph.
            outputs: Its outputs, detached.
            gradient: Gradient of the user's loss in them.
        """
        entries, sums = self.plan.entries, self._sums
        dtype = factor_dtype(outputs.dtype)
        singles = [
            (position, entry.parameter)
            for position, entry in enumerate(entries)
            if isinstance(entry, DiagonalParameter) and entry.parameter.requires_grad
        ]
        weight, columns = cotangents(
            self.likelihood,
            self.settings.labels,
            outputs.to(dtype),
            gradient.to(dtype),
            damping=self.settings.output_damping,
            generator=self._draws(),
            signs=bool(self.plan.diagonals),
        )
        if weight <= 0:
            return
        edges, absent = calls.edges, self._absent(calls)
        wanted = [*edges, *(p for _, p in singles), *(p for _, p in absent)]
        if not wanted:
            return
        blocks = self._blocks()
        bases = blocks.bases()
        for number, column in enumerate(columns):
            found = _pulled_back(edge, wanted, column.to(outputs.dtype))
            by_position: dict[int, list[LayerUse]] = {}
            for use in calls.uses(found[: len(edges)]):
                for position in self._slots.get((use.layer, use.slot), ()):
                    by_position.setdefault(position, []).append(use)
            for position, uses in by_position.items():
                entry = entries[position]
                if isinstance(entry, UnitLayer):
                    self._add_unit(position, entry, uses, len(outputs), blocks)
                elif isinstance(entry, KroneckerLayer):
                    self._add_layer(
                        position, entry, uses, len(outputs), number == 0, blocks,
                        bases.get(position),
                    )  # fmt: skip
            rest = found[len(edges) :]
            for (position, _), g in zip(singles, rest, strict=False):
                if g is not None:
                    self._add(position, g.to(factor_dtype(g.dtype)).square())
            for (names, _), g in zip(absent, rest[len(singles) :], strict=True):
                if g is not None:
                    sums.bypassed.update(names)
        sums.weight += weight
        sums.passes += 1

    def _draws(self) -> torch.Generator:
        """The generator; of several processes each has draws of its own, the state in common."""
        distributed = self.settings.distributed
        if not (distributed and dist.is_available() and dist.is_initialized()):
            return self.generator
        device = self.generator.device
        seed = torch.randint(2**62, (), generator=self.generator, device=device, dtype=torch.int64)
        return torch.Generator(device).manual_seed(int(seed) + dist.get_rank())

    def _add(self, position: int, moments: Tensor) -> None:
        self._sums.moments[position] = _plus(self._sums.moments.get(position), moments)

    def _add_layer(
        self, position: int, layer: KroneckerLayer, uses: list[LayerUse], examples: int,
        first: bool, blocks: Preconditioner, basis: tuple[Tensor, Tensor | None] | None,
    ) -> None:  # fmt: skip
        """Second moments of a layer that multiplies by a matrix."""
        settings, form = self.settings, layer.form
        uses, examples = part_of(
            form, uses, examples, settings.statistics_examples, self.turns,
            reduced=settings.sharing == "reduce",
        )  # fmt: skip
        kept = factor_dtype(layer.weight.dtype)
        if not blocks.takes_factors(position):
            rows = example_rows(form, uses, examples, kept, torch.arange(form.size))
            if rows is None:
                raise _mixed(layer.name, layer.modules[0][1], examples)
            self._add(position, blocks.block(position).moments_of(rows))
            return
        dtype = kept if form.lookup or settings.precision is None else settings.precision
        rounded = self.rounded and all(use.reading.worth_rounding for use in uses)
        with rounded_rows() if rounded else contextlib.nullcontext():
            self._sums.moments.setdefault(position, FactorSums()).add(
                form,
                uses,
                examples=examples,
                sharing=settings.sharing,
                dtype=dtype,
                inputs=first,
                traced=TRACED_EXAMPLES if settings.statistics_examples == "auto" else None,
            )
        if basis is not None:
            squares = turned_squares(form, uses, examples, kept, *basis)
            self._sums.squares[position] = _plus(self._sums.squares.get(position), squares)

    def _add_unit(
        self, position: int, unit: UnitLayer, uses: list[LayerUse], examples: int,
        blocks: Preconditioner,
    ) -> None:  # fmt: skip
        """Second moments of scale and shift of a normalisation."""
        dtype = factor_dtype(unit.tensors[0].dtype)
        for use in uses:
            gradients = use.gradients.to(dtype)
            rows = scale_rows(unit.module, unit.attributes, use.inputs, gradients, examples)
            if rows is None:
                raise _mixed(unit.name, unit.module, examples)
            matrix = rows.flatten(0, 1).flatten(1)
            indices = torch.arange(matrix.shape[1])
            self._add(position, blocks.block(position).moments_of(DenseRows(matrix, indices)))

    def _absent(self, calls: Watch) -> list[tuple[tuple[str, ...], nn.Parameter]]:
        """Parameters whose modules were not called, so that any use of them was missed."""
        called = calls.layers
        seen = {p for (path, _), own in self._slots.items() if path in called for p in own}
        return [
            (entry.parameters, entry.tensors[0])
            for position, entry in enumerate(self.plan.entries)
            if position not in seen
            and not isinstance(entry, DiagonalParameter)
            and entry.tensors[0].requires_grad
        ]


def part_of(
    form: LayerForm,
    uses: Sequence[LayerUse],
    examples: int,
    wanted: StatisticsExamples,
    turn: int,
    *,
    reduced: bool = False,
) -> tuple[list[LayerUse], int]:
    """Choose a block of a batch's examples, gradients scaled so that means over blocks are whole.

    Args:
        form: Of the matrix.
        uses: All its uses in the batch.
        examples: Number of examples N in it.
        wanted: A least number of them; "all"; "auto": at least `FEWEST_EXAMPLES`, and rows enough
            for max(M, K) and `FEWEST_ROWS`.
        turn: Which block. The batch falls into equal blocks, as many as have the wanted number;
            successive turns go through all of them, each time beginning with another, so that
            batches that come again and again, one or several by turns, are seen whole.
        reduced: Whether the places of an example count as one row.

    Returns:
        The uses with n of N examples, gradients times √(N/n), and n. As they are, and N, where all
        are wanted, and where examples are not the first axis of what the layer was called with.
        A view of the inputs and a copy of the chosen gradients.
    """
    if wanted == "all" or form.lookup or not all(_by_example(use, examples) for use in uses):
        return list(uses), examples
    if wanted == "auto":
        lines = max(form.outputs, form.inputs, FEWEST_ROWS)
        places = 1 if reduced else min(_places(use) // examples for use in uses)
        count = max(FEWEST_EXAMPLES, math.ceil(lines / places))
    else:
        count = int(wanted)
    blocks = examples // count
    if blocks < 2:
        return list(uses), examples
    block = (turn + turn // blocks) % blocks
    first, end = (b * examples // blocks for b in (block, block + 1))
    count = end - first
    scale = math.sqrt(examples / count)
    chosen = []
    for use in uses:
        each = use.inputs.shape[0] // examples
        own = slice(first * each, end * each)
        chosen.append(
            dataclasses.replace(
                use, inputs=use.inputs[own], gradients=use.gradients[:, own] * scale
            )
        )
    return chosen, count


def _by_example(use: LayerUse, examples: int) -> bool:
    """Whether the first axis of inputs and gradients counts examples, or equal shares of them."""
    count = use.inputs.shape[0] if use.inputs.ndim >= use.reading.axes else 0
    return count > 0 and count % examples == 0 and use.gradients.shape[1] == count


def _places(use: LayerUse) -> int:
    """Rows of one cotangent of a use, over all examples."""
    return use.gradients[0].numel() // use.gradients.shape[use.reading.channel_axis]


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


def _mixed(name: str, module: nn.Module, examples: int) -> ValueError:
    return ValueError(
        f"{name} ({type(module).__name__}): its inputs do not divide into the {examples} examples "
        "of the model's output"
    )


def _plus(known: Tensor | None, new: Tensor) -> Tensor:
    return new if known is None else known.add_(new)
