"""Steps whose length, momentum and damping are measured.

Every so many steps the optimizer looks at what it does: the quadratic model of the minibatch along
the new direction and the last update says how long the step should be and how much momentum to
keep (2×2 solve), repeating the minibatch at the new parameters says whether the model was right
(trust radius), and the next minibatch, repeated at the old ones, says whether that holds for
examples that had no part in the step. The steps in between keep the two coefficients.

The noise of minibatches enters at three places, each by measurement:

- The slope along the last update counts only as far as it exceeds its standard error.
- At every step the fresh gradient is multiplied with the last update, which costs a dot product:
  the slope of the function, not only of the step's own examples, where the step has led. In units
  of the step's curvature a step that gains most ends at slope 0, one that gains nothing at ½. The
  share of the model's step that is made shrinks where steps end beyond ¼ on the average. Steps that
  gain most one by one would be too short: they give all they have to quieting the noise in stiff
  directions and hardly move along the others.
- The damping falls only where fresh examples confirm the predicted decrease; see
  `kobai.optim.kfac.damping_control`.

Source of the last but one: Wu et al. 2018, Understanding short-horizon bias in stochastic
meta-optimization.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.optim.damping import LevenbergMarquardt, same_examples
from kobai.optim.kfac.control_state import CONTROL_COUNTS, ControlState
from kobai.optim.kfac.damping_control import DampingControl
from kobai.optim.kfac.distribution import gathered
from kobai.optim.kfac.minibatch import Minibatch
from kobai.optim.kfac.observe import Observation
from kobai.optim.kfac.quadratic_model import QuadraticModel, minimiser, shrunk
from kobai.optim.kfac.settings import KFACSettings, due
from kobai.optim.kfac.step_size import (
    Directions,
    Fixed,
    Move,
    StepSize,
    check_same_choice,
    size_of,
)
from kobai.problem import Likelihood

_DENSITY = 5
"""At the start the interval between two models is a fifth of the steps made so far."""

_MOMENTUM_MEMORY = 0.8
"""Weight of the past in the average over models of the momentum's coefficient, which is noisy."""

_FEEDBACK = 0.05
"""Change of the share's logarithm by one step that ended a whole unit beyond: twenty steps tell."""

_LEAST_SHARE = 0.05
"""Share of the model's step that is always made, so that what was wrong can be seen to end."""

_TOLERATED = 0.25
"""Slope after a step, in units of its curvature, that leaves the share alone: half way between the
step that gains most (0) and the one that gains nothing (½)."""

_ALARM = 3.0
"""Slope after a step, in the same units, at which the next step gets a model of its own."""

_HALVINGS = 12
"""Times that a step is halved before it is given up: a factor of four thousand."""

_STRETCH = 2.0
"""Square of a step's length, relative to the last that was held against its minibatch, up to which
that one speaks for it."""

_RADIUS_GROWTH = 2.0
"""Growth of the radius after a bounded step of which the model was right."""

_LEAST_RADIUS = 1e-12
"""Radius in nats below which no step can be told from rounding."""

_TINY_RADIUS = 1e-3
"""Radius in nats of steps that change no prediction: growth is quick below."""

_TINY_GROWTH = 32.0
"""Growth of such a radius, so that a few steps lead out of it."""


@final
class Measured(StepSize):
    """Measures, decides and remembers; the optimizer asks it for every step.

    Args:
        model: The model.
        likelihood: What its outputs mean.
        settings: What is automatic, bounds and intervals.
        fixed: Sizes steps by the learning rate where only the damping is measured.

    Attributes:
        sized: Whether lengths of steps are measured, or the learning rate's business.
        updates: The last update of each parameter, by ``id(parameter)``.
    """

    def __init__(
        self, model: nn.Module, likelihood: Likelihood, settings: KFACSettings, fixed: Fixed
    ) -> None:
        self.model = model
        self.likelihood = likelihood
        self.sized = settings.lr == "auto"
        self.every = settings.control_every
        self.fixed = fixed
        rule = settings.rule if isinstance(settings.rule, LevenbergMarquardt) else None
        self.counts = dict.fromkeys(CONTROL_COUNTS, 0)
        self.judged = DampingControl(rule, self.counts)
        self.state = ControlState()
        self.last = {}
        self.updates: dict[int, Tensor] = {}
        self.largest = math.inf
        """What the radius may not exceed."""
        if isinstance(settings.kl_bound, float | int):
            self.largest = self.state.radius = float(settings.kl_bound)
        self.decay = 0.0
        """What weight decay is multiplied with, besides learning rates, at the present step."""
        self.gather: Callable[[Tensor], Tensor] = gathered if settings.distributed else _unchanged
        """Joins rows of examples across processes."""

    def move(
        self,
        step: int,
        groups: Sequence[dict[str, Any]],
        directions: Directions,
        seen: Observation,
        inversions: int,
        closure: Callable[[], Any] | None,
    ) -> Move | None:
        """See `StepSize.move`; the groups' damping may change."""
        size = float(size_of(directions))
        if not math.isfinite(size):
            return None
        scale = 1.0 if self.sized else self.fixed.scale(size)
        assert scale is not None
        parameters = [p for _, own in directions for p in own.parameters]
        if not parameters:
            self.last = {"step_scale": scale, "kl": size}
            return Move([])
        # Learning rates are factors on what is measured; relative ones between the groups.
        lr = max(float(group["lr"]) for group in groups) if self.sized else 1.0
        steps = [
            (direction * (-scale * float(group["lr"]) / (lr or 1.0))).to(p.dtype)
            for group, own in directions
            for p, direction in zip(own.parameters, own.directions, strict=True)
        ]
        damping = float(groups[0]["damping"])
        factor = self._decide(step, parameters, steps, damping, inversions, seen, closure, lr)
        if factor != 1.0:
            for group in groups:
                group["damping"] *= factor
        self.last = {
            "step_scale": scale,
            "kl": self.state.bend if self.sized else scale * scale * size,
        }
        return Move(
            [
                (group, own.parameters, [self.updates[id(p)] for p in own.parameters], 1.0)
                for group, own in directions
            ],
            decay=self.decay,
        )

    def due(self, step: int) -> bool:
        """Whether the step gets a model of its own."""
        state = self.state
        return state.urgent or state.repeated or due(step, state.model_step, self.every, _DENSITY)

    def keeps_passes(self, step: int) -> bool:
        """See `StepSize.keeps_passes`."""
        return self.due(step) or self.state.predicted != 0

    def diagnostics(self) -> dict[str, Any]:
        """See `StepSize.diagnostics`."""
        state = self.state
        return {
            **self.fixed.diagnostics(),
            **self.counts,
            **self.last,
            "rate": state.rate,
            "momentum_rate": state.momentum,
            "share": state.share,
            "radius": state.radius,
            "ratio": state.ratio,
            "decisions": copy.deepcopy(self.judged.decisions),
        }

    def memory(self) -> dict[int, Tensor]:
        """See `StepSize.memory`."""
        return self.updates

    def _decide(
        self,
        step: int,
        parameters: Sequence[nn.Parameter],
        directions: Sequence[Tensor],
        damping: float,
        inversions: int,
        seen: Observation,
        closure: Callable[[], Any] | None,
        lr: float,
    ) -> float:
        """Set the updates of the parameters, and say by what the damping is to be multiplied.

        Args:
            step: Number of steps made before.
            parameters: Those that move; their gradients are as the user's loop left them.
            directions: Where sized, −(F + λ)⁻¹g times relative learning rates; else the whole step.
            damping: λ, in the model's 2×2 system.
            inversions: Inversions made so far: a changed damping acts from the next one on.
            seen: The step's passes.
            closure: The user's, for losses that cannot be read off the gradient.
            lr: Factor on the step that is decided here; directions are without it.
        """
        state = self.state
        update = [self._update(p) for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        passes = [one for one in seen.passes if one.outputs.numel()]
        self.decay = 0.0
        self._feedback(inner(gradients, update))
        batch = None
        if state.predicted or self.due(step):
            batch = Minibatch(
                self.model,
                self.likelihood,
                passes,
                parameters,
                closure,
                self.gather,
                state.loss_scale,
            )
        factor = 1.0
        if state.predicted and batch is not None and batch.passes:
            factor = self.judged.judge(state, batch, update, damping, step, inversions)
        model = None
        if self.due(step) and batch is not None:
            if not batch.passes and state.model_step is None:
                raise RuntimeError(
                    "there is no forward pass with examples to measure the step on: call the "
                    "model itself in the loop, do not change its inputs in place before the step, "
                    "or give lr and damping as numbers"
                )
            if batch.passes:
                if not self.counts["models"]:
                    batch.check_repeatable()
                examples = batch.fingerprint()
                state.repeated = same_examples(state.examples, examples)
                state.examples = examples
                model = self._model(batch, parameters, directions, update, gradients)
                if model is None:
                    # Changes or losses beyond the numbers: stay, start afresh, try again.
                    self.counts["unmodelled_steps"] += 1
                    state.urgent, state.bend = True, 0.0
                    _scale(update, 0.0)
                    return factor
        if model is not None:
            self.counts["models"] += 1
            state.model_step, state.urgent = step, False
            if self.sized:
                self._solve(model, directions, update, damping)
        share = state.share * lr
        for d, v in zip(update, directions, strict=True):
            if self.sized:
                d.mul_(state.momentum * share).add_(v, alpha=state.rate * share)
            else:
                d.copy_(v)
        self.decay = self._decay() if self.sized else 1.0
        if model is not None and batch is not None:
            factor *= self._try(model, batch, parameters, update, step, damping * factor, share)
        else:
            self._bounded(update)
        return factor

    def _update(self, parameter: nn.Parameter) -> Tensor:
        known = self.updates.get(id(parameter))
        if known is None or known.shape != parameter.shape or known.device != parameter.device:
            known = self.updates[id(parameter)] = torch.zeros_like(
                parameter, requires_grad=False, memory_format=torch.preserve_format
            )
        return known

    def _feedback(self, slope: float) -> None:
        """Learn from the slope along the last update where it has led."""
        state = self.state
        if not (self.sized and math.isfinite(slope)):
            return
        if state.bend <= 0:
            # Of no size as far as predictions go: if it led uphill, look at the next one.
            state.urgent |= slope > 0
            return
        beyond = slope * state.gradient_scale / state.bend
        state.urgent |= beyond > _ALARM
        overshoot = max(-1.0, min(1.0, beyond - _TOLERATED))
        state.share = min(1.0, max(_LEAST_SHARE, state.share * math.exp(-_FEEDBACK * overshoot)))

    def _model(
        self,
        batch: Minibatch,
        parameters: Sequence[nn.Parameter],
        directions: Sequence[Tensor],
        update: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> QuadraticModel | None:
        """The model along the direction and, where it is sized here, the last update."""
        wanted = [directions, update] if self.sized else [directions]
        own = inner(gradients, directions)
        model = batch.model_along(wanted, own)
        if model is None or not bool(
            torch.isfinite(model.slope).all() & model.bend.isfinite().all()
        ):
            return None
        self.state.loss_scale = batch.scale
        if own:
            self.state.gradient_scale = float(model.slope[0]) / own
        return model

    def _solve(
        self,
        model: QuadraticModel,
        directions: Sequence[Tensor],
        update: Sequence[Tensor],
        damping: float,
    ) -> None:
        """α and μ of the damped model's minimum."""
        state = self.state
        slope = model.slope.clone()
        if not state.repeated:
            # The direction's own slope is certain, though not unbiased: its examples made it.
            slope[1] = shrunk(slope, model.error)[1]
        mixed = inner(directions, update)
        penalty = damping * torch.tensor(
            [[inner(directions, directions), mixed], [mixed, inner(update, update)]],
            dtype=torch.float64,
        )
        rate, momentum = minimiser(slope.cpu(), model.bend.cpu(), penalty).tolist()
        if rate <= 0 or momentum < 0:
            alone = minimiser(slope[:1].cpu(), model.bend[:1, :1].cpu(), penalty[:1, :1])
            rate, momentum = max(0.0, float(alone[0])), 0.0
        momentum = min(momentum, 1.0)
        if not state.repeated:
            past = min(1 - 1 / max(1, self.counts["models"]), _MOMENTUM_MEMORY)
            momentum = past * state.momentum + (1 - past) * momentum
        state.rate, state.momentum = rate, momentum

    def _decay(self) -> float:
        """α in units of the objective, whatever the scale of the loss, and at most a whole step."""
        state = self.state
        scale = state.gradient_scale if state.gradient_scale > 0 else 1.0
        return min(1.0, state.rate / scale) * state.share

    def _bounded(self, update: Sequence[Tensor]) -> None:
        """Between models: keep the step inside the radius by its length."""
        state = self.state
        square = inner(update, update)
        state.bend = state.bend_per_square * square
        if not self.sized:
            return
        # What holds for the step that was measured need not hold for much longer ones.
        part = min(1.0, _STRETCH * state.measured / square) if square else 1.0
        if part * state.bend > state.radius:
            part = state.radius / state.bend
        if part < 1.0:
            _scale(update, math.sqrt(part))
            state.bend *= part

    def _try(
        self,
        model: QuadraticModel,
        batch: Minibatch,
        parameters: Sequence[nn.Parameter],
        update: Sequence[Tensor],
        step: int,
        damping: float,
        share: float,
    ) -> float:
        """Hold the step against the minibatch, and shorten it until the model is right about it."""
        state = self.state
        pair = [state.rate * share, state.momentum * share] if self.sized else [1.0]
        coefficients = torch.tensor(pair, dtype=torch.float64, device=model.linear.device)
        whole = max(0.0, float(coefficients @ model.bend @ coefficients))
        scale, bounded, halvings = 1.0, False, 0
        if self.sized and whole > state.radius:
            scale, bounded = math.sqrt(state.radius / whole), True
        limit = _HALVINGS if self.sized else 0
        rule = self.judged.rule
        accepted = 0.25 if rule is None else rule.raise_below
        while True:
            ratio = batch.ratio(model, update, scale, coefficients)
            good = math.isfinite(ratio.actual) and (
                ratio.value >= accepted or abs(ratio.predicted) <= ratio.resolution
            )
            if good or halvings >= limit:
                break
            halvings += 1
            scale *= 0.5
        self.counts["shortened_trials"] += halvings
        if not math.isfinite(ratio.actual) or (self.sized and not good):
            self.counts["rejected_steps"] += 1
            _scale(update, 0.0)
            state.predicted, state.bend, state.ratio = 0.0, 0.0, -math.inf
            state.urgent, self.decay = True, 0.0
            return self.judged.shortened(step, damping, ratio)
        if scale != 1.0:
            _scale(update, scale)
        state.bend = scale * scale * whole
        state.measured = inner(update, update)
        state.bend_per_square = state.bend / state.measured if state.measured else 0.0
        state.ratio, state.error, state.predicted = ratio.value, ratio.error, ratio.predicted
        if halvings:
            state.radius = max(state.bend, _LEAST_RADIUS)
            return self.judged.shortened(step, damping, ratio)
        if bounded and ratio.value > 0.75:
            # A step that changes no prediction says nothing about how far the next may go.
            tiny = state.radius < _TINY_RADIUS
            growth = _TINY_GROWTH if tiny else _RADIUS_GROWTH
            state.radius = min(self.largest, state.radius * growth)
            state.urgent |= tiny
        if abs(ratio.predicted) <= ratio.resolution or rule is None:
            state.predicted = 0.0  # nothing left to judge
        return 1.0

    def export(self) -> dict[str, Any] | None:
        """See `StepSize.export`; updates are saved with the parameters."""
        return {
            "state": dataclasses.asdict(self.state),
            "counts": dict(self.counts),
            "decisions": copy.deepcopy(self.judged.decisions),
        }

    def restore(self, saved: dict[str, Any] | None) -> None:
        """See `StepSize.restore`."""
        check_same_choice(saved, automatic=True)
        assert saved is not None
        self.state = ControlState(**saved["state"])
        self.counts.update(saved["counts"])
        self.judged.decisions = copy.deepcopy(saved["decisions"])
        self.updates.clear()


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Inner product of two lists of tensors."""
    if len(a) != len(b) or not a:
        return 0.0
    return math.fsum(
        float(torch.dot(x.reshape(-1).to(y.dtype), y.reshape(-1)))
        for x, y in zip(a, b, strict=True)
    )


def _scale(update: Sequence[Tensor], factor: float) -> None:
    for d in update:
        if factor:
            d.mul_(factor)
        else:
            d.zero_()


def _unchanged(rows: Tensor) -> Tensor:
    return rows
