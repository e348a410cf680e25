"""An optimizer whose parameters have curvature blocks: their plan, statistics, renewal and state.

What is done with the blocks in a step is the business of `kobai.optim.factored`.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import nn

from kobai.curvature.shifted_inverse import InverseMethod
from kobai.optim.averages import waits
from kobai.optim.blocks import Blocks
from kobai.optim.coverage import Plan, plan_blocks
from kobai.optim.device_step import DeviceStep
from kobai.optim.distribution import invert, joined, ranks
from kobai.optim.gradient_rows import RowWatch
from kobai.optim.kfac_settings import check_group
from kobai.optim.refresh import Refresh
from kobai.optim.side_stream import SideRefresh
from kobai.optim.statistics import BackwardStatistics, Sums
from kobai.optim.step_control import StepControl


class BlockOptimizer(torch.optim.Optimizer, abc.ABC):
    """Keeps the blocks of `FactoredOptimizer` and renews them (interface).

    Attributes:
        corrected: Whether blocks keep second moments in their eigenbases instead of inverses.
        model: The model.
        distributed: Whether processes train one model together.
        product_dtype: Precision of products with inverses, or None.
        inverse: How factors are inverted.
        factor_dtype: Precision of factors, or None.
        generator: Draws labels.
    """

    corrected: ClassVar[bool]
    model: nn.Module
    distributed: bool
    product_dtype: torch.dtype | None
    inverse: InverseMethod
    factor_dtype: torch.dtype | None
    generator: torch.Generator
    _plan: Plan
    _blocks: Blocks | None
    _demoted: frozenset[str]
    _waiting: bool
    _steps: int
    _counts: dict[str, int]
    _last: dict[str, float]
    _refreshes: Refresh
    _control: StepControl | None
    _watch: BackwardStatistics
    _rows: RowWatch | None
    _side: SideRefresh
    _device_step: DeviceStep

    @abc.abstractmethod
    def _watcher(self) -> BackwardStatistics:
        """What gathers statistics for the present plan."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters of the model, such as newly unfrozen ones; see `torch.optim.Optimizer`.

        Raises:
            ValueError: If a parameter does not belong to the model, or a number is out of range.
        """
        super().add_param_group(param_group)
        known = {id(p) for p in self.model.parameters()}
        if any(id(p) not in known for p in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise ValueError("K-FAC can only train parameters of the model it was made for")
        check_group(self.param_groups[-1])
        if len(self.param_groups) > 1:
            self._replan()

    def _replan(self) -> None:
        """Give the present parameters their blocks anew, keeping what still fits."""
        self._side.take_over()
        saved = list(self._blocks.entries()) if self._blocks is not None else []
        chosen = [p for group in self.param_groups for p in group["params"]]
        self._plan = plan_blocks(self.model, chosen, self._demoted)
        self._watch.close()
        turns = self._watch.turns
        self._watch = self._watcher()
        self._watch.turns = turns
        self._blocks = None
        blocks = self._made()
        for parameter, entry in saved:
            if blocks.takes(parameter, entry):
                blocks.restore(parameter, entry)

    def _moved(self) -> bool:
        """Whether the model has changed device or precision since the blocks were made."""
        return self._blocks is not None and not self._blocks.fits()

    def _made(self) -> Blocks:
        """The blocks, allocated when first needed."""
        if self._blocks is None:
            group_of = {
                id(p): index
                for index, group in enumerate(self.param_groups)
                for p in group["params"]
            }
            self._blocks = Blocks(
                self._plan,
                group_of,
                self.corrected,
                self.product_dtype,
                self.inverse,
                self.factor_dtype,
            )
            if self._rows is not None:
                # Gradients of several processes are averages of products.
                single = not self.distributed or ranks() == 1
                self._rows.choose(self._blocks.wide() if single else {})
        return self._blocks

    def _schedule(self) -> None:
        """Say whether the next pass gathers statistics."""
        self._watch.due = self._waiting or self._refreshes.statistics_due(self._steps)
        if self._control is not None:
            self._control.schedule(self._steps)

    def _refresh(self) -> None:
        """Take in new statistics, and recompute the inverses if it is time."""
        self._side.take_over()
        due_now = self._watch.due
        sums = self._watch.take()
        if self.distributed and due_now:
            sums = joined(sums, self._plan, self.factor_dtype)
        if sums.bypassed:
            # What was gathered is indexed by the old plan; the next pass gathers anew.
            self._demote(sums)
            sums = Sums()
            self._waiting = True
        elif self._moved():
            self._replan()
        blocks = self._made()
        if sums.passes:
            self._counts["refused_statistics"] += blocks.update(sums)
            self._counts["statistics"] += 1
            self._refreshes.updated(self._steps, blocks)
        damping = float(self.param_groups[0]["damping"])
        if sums.passes and self._refreshes.inverse_due(self._steps, damping):
            self._invert(blocks, lambda group: self.param_groups[group]["damping"])
            self._counts["inversions"] += 1
            self._refreshes.inverted(self._steps, damping)

    def _invert(self, blocks: Blocks, damping: Callable[[int], float]) -> None:
        """Recompute the inverses, on a device beside the training where that is possible."""
        self._counts["inversions_failed"] += self._side.failed()
        retry, self._side.retry = self._side.retry, False
        single = not self.distributed or ranks() == 1
        beside = self._plan.layers and waits(self._plan.layers[0].weight)
        if beside and single and not retry and self._side.suits(blocks):
            self._side.launch(blocks, damping)
            found = blocks.invert_tables(damping)
        else:
            found = invert(blocks, damping, self.distributed)
        for name, count in dataclasses.asdict(found).items():
            self._counts[f"inversions_{name}"] += count

    def _demote(self, sums: Sums) -> None:
        """Give layers whose weights are used behind their back diagonal blocks from now on."""
        self._demoted |= sums.bypassed
        self._replan()

    def _read(self) -> None:
        """Take in what happened on the device since the last time."""
        counts, last = self._device_step.read()
        for name, count in counts.items():
            self._counts[name] += count
        self._last.update(last)
        self._counts["inversions_failed"] += self._side.failed()

    def _export(self) -> tuple[Iterable[tuple[nn.Parameter, dict[str, Any]]], dict[str, Any]]:
        """See `kobai.optim.state.keep_state`."""
        self._side.take_over()
        self._read()
        entries = {id(p): (p, dict(entry)) for p, entry in self._made().entries()}
        control = self._control
        if control is not None:
            for group in self.param_groups:
                for p in group["params"]:
                    if id(p) in control.updates:
                        entries.setdefault(id(p), (p, {}))[1]["last_update"] = control.updates[
                            id(p)
                        ]
        return list(entries.values()), {
            "control": None if control is None else control.export(),
            "steps": self._steps,
            "refreshes": self._refreshes.export(),
            "turns": self._watch.turns,
            "waiting": self._waiting,
            "demoted": sorted(self._demoted),
            "counts": dict(self._counts),
            "last": dict(self._last),
            "generator": self.generator.get_state(),
        }

    @torch.no_grad()
    def _restore(
        self, entries: list[tuple[nn.Parameter, dict[str, Any]]], shared: dict[str, Any]
    ) -> None:
        """See `kobai.optim.state.keep_state`."""
        self._side, self._device_step = SideRefresh(), DeviceStep()
        self._demoted = frozenset(shared["demoted"])
        self._blocks = None
        self._replan()
        if (shared["control"] is None) != (self._control is None):
            raise ValueError(
                "this state was saved with another choice of numbers and 'auto' for lr and damping;"
                " make the optimizer as it was made then"
            )
        if self._control is not None:
            self._control.restore(shared["control"])
        for parameter, entry in entries:
            if self._control is not None and "last_update" in entry:
                self._control.updates[id(parameter)] = entry["last_update"].clone().to(parameter)
            if "updates" in entry:
                self._made().restore(parameter, entry)
        self._steps = shared["steps"]
        self._refreshes.restore(shared["refreshes"])
        self._watch.turns = shared.get("turns", 0)  # missing in what older versions saved
        self._waiting = shared["waiting"]
        self._counts.update(shared["counts"])
        self._last.update(shared["last"])
        self.generator.set_state(shared["generator"].cpu())
        self._schedule()
