"""What K-FAC and EKFAC have in common: blocks, refresh, step and state in the ordinary loop."""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kobai.curvature.coverage import Coverage
from kobai.curvature.factor_sums import Sharing, check_sharing
from kobai.curvature.shifted_inverse import InverseMethod
from kobai.optim.averages import waits
from kobai.optim.block_optimizer import BlockOptimizer
from kobai.optim.blocks import Blocks
from kobai.optim.cotangents import Labels
from kobai.optim.coverage import plan_blocks
from kobai.optim.damping import Damping, LevenbergMarquardt, as_rule, check_damping, first_damping
from kobai.optim.device_step import DeviceStep, finite_on_device
from kobai.optim.gathering import gathered
from kobai.optim.gradient_rows import GradientRows, RowWatch
from kobai.optim.kfac_settings import (
    COUNTS,
    FIXED_BOUND,
    GROUP,
    KFAC_RULE,
    all_finite,
    check_group,
    check_settings,
    first_lr,
)
from kobai.optim.lookahead import precondition
from kobai.optim.refresh import Every, Refresh
from kobai.optim.side_stream import SideRefresh
from kobai.optim.state import keep_state
from kobai.optim.statistics import BackwardStatistics
from kobai.optim.statistics_part import StatisticsExamples, check_examples
from kobai.optim.step_control import StepControl
from kobai.problem import Likelihood, as_likelihood

_FLUSH_EVERY = 20


class FactoredOptimizer(BlockOptimizer):
    """What `KFAC` and `EKFAC` share, which is all but the kind of their blocks (interface)."""

    def __init__(
        self,
        model: nn.Module,
        likelihood: str | Likelihood | nn.Module = "categorical",
        *,
        lr: float | Literal["auto"] = "auto",
        damping: Damping = "auto",
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        statistics_every: Every = 10,
        inverse_every: Every = 100,
        kl_bound: float | Literal["auto"] | None = "auto",
        output_damping: float = 1.0,
        control_every: int = 10,
        labels: Labels = "sampled",
        sharing: Sharing = "trace",
        statistics_examples: StatisticsExamples = "auto",
        distributed: bool = True,
        product_dtype: torch.dtype | None = None,
        inverse: InverseMethod = "cholesky",
        factor_dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.damping: Damping = as_rule(damping, KFAC_RULE)
        defaults = {
            "lr": first_lr(lr),
            "damping": first_damping(self.damping, positive=True),
            "momentum": momentum,
            "weight_decay": weight_decay,
        }
        check_group(defaults)
        check_settings(
            statistics_every,
            inverse_every,
            control_every,
            kl_bound,
            output_damping,
            labels,
            inverse,
            factor_dtype,
        )
        if self.corrected and inverse != "cholesky":
            raise ValueError(
                f"inverse={inverse!r}: EKFAC has eigenvectors in place of inverses; leave it out"
            )
        plan = plan_blocks(model)
        if nesterov and lr == "auto":
            raise ValueError(
                'nesterov=True belongs to a learning rate in numbers; under lr="auto" the momentum '
                "is measured"
            )
        self.model = model
        self.likelihood = as_likelihood(likelihood)
        self.lr = lr
        self.nesterov = nesterov
        self.control_every = control_every
        self.statistics_every = statistics_every
        self.inverse_every = inverse_every
        self.kl_bound = kl_bound
        self.output_damping = output_damping
        self.labels: Labels = labels
        self.sharing: Sharing = check_sharing(sharing)
        self.statistics_examples: StatisticsExamples = check_examples(statistics_examples)
        self.distributed = distributed
        if product_dtype is not None and (self.corrected or not product_dtype.is_floating_point):
            raise ValueError(
                f"product_dtype={product_dtype}: inverses are multiplied in a floating-point "
                "precision, and EKFAC, which has none, in that of the factors; leave it out"
            )
        self.product_dtype = product_dtype
        self.inverse: InverseMethod = inverse
        self.factor_dtype = factor_dtype
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._steps = 0
        self._refreshes = Refresh(statistics_every, inverse_every)
        self._counts = dict.fromkeys(COUNTS, 0)
        self._last = {"step_scale": 1.0, "kl": 0.0}
        self._device_step = DeviceStep()
        self._side = SideRefresh()
        self._control = self._controller()
        self._plan = plan
        self._blocks: Blocks | None = None
        self._demoted: frozenset[str] = frozenset()
        self._waiting = False
        super().__init__([p for p in model.parameters() if p.requires_grad], defaults)
        self._rows = None if self.corrected or nesterov else RowWatch(model)
        self._watch = self._watcher()
        keep_state(self, type(self).__name__.lower())

    def _controller(self) -> StepControl | None:
        """What measures steps, if anything is automatic."""
        rule = self.damping if isinstance(self.damping, LevenbergMarquardt) else None
        if self.lr != "auto" and rule is None:
            return None
        control = StepControl(
            self.model,
            self.likelihood,
            rule=rule,
            every=self.control_every,
            sized=self.lr == "auto",
        )
        if self.distributed:
            control.gather = gathered
        if isinstance(self.kl_bound, float | int):
            control.largest = control.state.radius = float(self.kl_bound)
        return control

    def _watcher(self) -> BackwardStatistics:
        return BackwardStatistics(
            self.model,
            self.likelihood,
            self._plan,
            labels=self.labels,
            output_damping=self.output_damping,
            generator=self.generator,
            sharing=self.sharing,
            statistics_examples=self.statistics_examples,
            distributed=self.distributed,
            rows=self._rows,
            precision=self.factor_dtype,
            rounded=self.product_dtype is None,
            bases=(lambda: self._blocks.bases() if self._blocks else {})
            if self.corrected
            else None,
        )

    def __repr__(self) -> str:
        group = self.param_groups[0]
        settings = ", ".join(f"{name}={group[name]:g}" for name in GROUP)
        lines = [
            f"{type(self).__name__}({settings}{', nesterov' * self.nesterov}{self._automatic()}, "
            f"kl_bound={self.kl_bound}, "
            f"output_damping={self.output_damping}, statistics_every={self.statistics_every}, "
            f"inverse_every={self.inverse_every}, labels={self.labels!r}, {self.likelihood!r})"
        ]
        table = self.coverage()
        return "\n".join([*lines, table.table(4), f"in all: {table.summary(4)}"])

    def _automatic(self) -> str:
        """What is decided by measurement, for `print`."""
        words = ["lr"] if self.lr == "auto" else []
        words += ["damping"] if isinstance(self.damping, LevenbergMarquardt) else []
        return f" (automatic: {' and '.join(words)})" if words else ""

    def coverage(self) -> Coverage:
        """Every block: its parameters, kind, sizes, memory, refresh cost and the reason."""
        return self._plan.table(self.corrected)

    def diagnostics(self) -> dict[str, Any]:
        """What happened so far.

        Returns:
            Counts: "steps", "skipped_steps" (gradients not finite), "bounded_steps" (the trust
            region was active), "statistics" and "inversions" (updates made), "refused_statistics"
            (not finite), "waiting_blocks" (blocks left where they were for want of statistics,
            summed over steps), "inversions_float64", "inversions_damped" (more damping was needed)
            "inversions_failed" (the old inverse was kept) and "inversions_cholesky" (Newton-Schulz
            did not reach its accuracy, so Cholesky was taken). "products_from_rows" counts layers'
            steps made from the rows of their gradient, "changed_gradients" those of which rows were
            there but not the gradient's (see `kobai.optim.gradient_rows`). Of the last step:
            "step_scale" ν and "kl", dᵀ(F + λ)d.

            Where something is measured also "models" (quadratic models made), "unmodelled_steps"
            (something was not finite: not made), "shortened_trials" (halvings), "rejected_steps"
            (no length was good: not made), "damping_raised", "damping_lowered", "damping_noise"
            (noise left it, or took it back towards where it began). "rate" α, "momentum_rate" μ,
            the "share" of them that is made, the trust "radius", the reduction "ratio", "kl" then
            being δᵀGδ. "decisions": a dictionary for each judgement of the damping, with "step",
            "damping", "predicted" change, "ratio" and its "error" on the step's own examples,
            "fresh_ratio" and "fresh_error" on those of the next step (None where they were the
            same), "action" and "next".

            Where intervals are automatic, "statistics_interval" and "inverse_interval" in steps,
            and what they follow, "statistics_staleness" and "inverse_staleness" (see
            `kobai.optim.refresh`). Always the present "damping".
        """
        self._read()
        found: dict[str, Any] = {"steps": self._steps, **self._counts, **self._last}
        if self._control is not None:
            found |= {**self._control.counts, **self._control.last()}
            found["decisions"] = copy.deepcopy(self._control.judged.decisions)
        found |= self._refreshes.diagnostics()
        return found | {"damping": self.param_groups[0]["damping"]}

    def close(self) -> None:
        """Take the hooks off the model; the optimizer gathers no more statistics."""
        self._watch.close()
        if self._rows is not None:
            self._rows.close()
        if self._control is not None:
            self._control.close()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with the gradients as they stand.

        Args:
            closure: Zeroes gradients, runs forward and backward, and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: If no statistics have ever been seen although there are gradients: the
                model was not called, or its output did not take part in the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if callable(self.damping) and not isinstance(self.damping, LevenbergMarquardt):
            for group in self.param_groups:
                group["damping"] = check_damping(self.damping(self._steps), positive=True)
        self._refresh()
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        if gradients:
            if self._refreshes.statistics.last is None and not self._waiting:
                raise RuntimeError(
                    "there are gradients but no statistics: call the model itself (not "
                    "model.forward) and let the loss depend on its output"
                )
            if self._unread(gradients):
                self._move(closure, finite_on_device(gradients))
            elif all_finite(gradients):
                self._move(closure)
            else:
                self._skip()
        self._steps += 1
        self._schedule()
        return loss

    def _unread(self, gradients: list[Tensor]) -> bool:
        """Whether the step is decided on the device; see `kobai.optim.device_step`."""
        return (
            self._control is None
            and not self.nesterov
            and waits(gradients[0])
            and len({g.device for g in gradients}) == 1
        )

    def _move(self, closure: Callable[[], Any] | None, finite: Tensor | None = None) -> None:
        """Precondition the gradient or its momentum, size the step and make it."""
        blocks = self._made()
        automatic = self.lr == "auto"
        if self._steps % _FLUSH_EVERY == 0:
            blocks.flush()
        rows: dict[int, GradientRows] = {}
        if self._rows is not None:
            rows, changed = self._rows.take()
            self._counts["changed_gradients"] += changed
            blocks.hand_over(rows)
        updates: list[tuple[dict[str, Any], list[nn.Parameter], list[Tensor]]] = []
        size: float | Tensor = 0.0
        waiting = 0
        for block in blocks.every:
            group = self.param_groups[block.group]
            part, parameters, directions, late = precondition(
                block,
                0.0 if automatic else group["momentum"],
                group["damping"],
                self.nesterov,
                finite,
            )
            size += part * float(group["lr"]) ** 2
            waiting += late
            updates.append((group, parameters, directions))
        self._counts["products_from_rows"] += sum(one.used for one in rows.values())
        self._waiting = waiting > 0
        self._counts["waiting_blocks"] += waiting
        bound = FIXED_BOUND if isinstance(self.kl_bound, str) else self.kl_bound
        if finite is not None:
            if isinstance(size, Tensor):  # otherwise nothing moves yet
                momenta = [block.momentum for block in blocks.every]
                self._device_step.make(updates, momenta, size, finite, bound)
            return
        size = float(size)
        if not math.isfinite(size):
            # Finite gradients so large that their squares are not: start the momentum afresh.
            blocks.forget_momentum()
            self._skip()
            return
        scale = 1.0
        if not automatic and bound is not None and size > bound:
            scale = math.sqrt(bound / size)
            self._counts["bounded_steps"] += 1
        if self._control is None:
            self._last = {"step_scale": scale, "kl": scale * scale * size}
            for group, parameters, directions in updates:
                lr = float(group["lr"])
                self._decay(group, parameters, lr)
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.add_(direction, alpha=-scale * lr)
            return
        self._controlled(self._control, updates, scale, closure)
        self._last = {
            "step_scale": scale,
            "kl": self._control.state.bend if automatic else scale * scale * size,
        }

    def _skip(self) -> None:
        """Count a step that is not made."""
        if self._rows is not None:
            self._rows.forget()
        self._counts["skipped_steps"] += 1
        if self._control is not None:
            self._control.skip()

    def _controlled(
        self,
        control: StepControl,
        updates: list[tuple[dict[str, Any], list[nn.Parameter], list[Tensor]]],
        scale: float,
        closure: Callable[[], Any] | None,
    ) -> None:
        """Make the step under control, which may change the damping."""
        moving = [p for _, parameters, _ in updates for p in parameters]
        if not moving:
            return
        lr = max(float(group["lr"]) for group in self.param_groups) if control.sized else 1.0
        steps = [
            (direction * (-scale * float(group["lr"]) / (lr or 1.0))).to(p.dtype)
            for group, parameters, directions in updates
            for p, direction in zip(parameters, directions, strict=True)
        ]
        self._watch.due = False  # repetitions of the minibatch are not to be gathered from
        factor = control.make_step(
            self._steps,
            moving,
            steps,
            float(self.param_groups[0]["damping"]),
            self._counts["inversions"],
            closure,
            lr,
        )
        for group, parameters, _ in updates:
            self._decay(group, parameters, float(group["lr"]) * control.decay)
        if factor != 1.0:
            for group in self.param_groups:
                group["damping"] *= factor

    @staticmethod
    def _decay(group: dict[str, Any], parameters: list[nn.Parameter], lr: float) -> None:
        if group["weight_decay"]:
            for parameter in parameters:
                parameter.mul_(1 - lr * group["weight_decay"])

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        arguments = {
            "likelihood": self.likelihood,
            "lr": self.lr,
            "nesterov": self.nesterov,
            "damping": self.damping,
            "control_every": self.control_every,
            "statistics_every": self.statistics_every,
            "inverse_every": self.inverse_every,
            "kl_bound": self.kl_bound,
            "labels": self.labels,
            "sharing": self.sharing,
            "statistics_examples": self.statistics_examples,
            "distributed": self.distributed,
            "product_dtype": self.product_dtype,
            "inverse": self.inverse,
            "factor_dtype": self.factor_dtype,
            "output_damping": self.output_damping,
        }
        groups = [group["params"] for group in self.param_groups]
        return _rebuild, (type(self), self.model, arguments, groups, self.state_dict())


def _rebuild(
    kind: "type[FactoredOptimizer]",
    model: nn.Module,
    arguments: dict[str, Any],
    groups: list[list[nn.Parameter]],
    state_dict: dict[str, Any],
) -> FactoredOptimizer:
    """Make a copied or unpickled optimizer, which watches the copied model."""
    optimizer = kind(model, **arguments)
    optimizer.param_groups[0]["params"] = groups[0]
    for parameters in groups[1:]:
        optimizer.add_param_group({"params": parameters})
    optimizer.load_state_dict(state_dict)
    return optimizer
