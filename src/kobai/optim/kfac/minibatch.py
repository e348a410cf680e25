"""A minibatch that is run again: its model along directions, its losses after a step.

It is made of the forward passes of one step, whose targets are read off the gradients of their
outputs (`Likelihood.recover_targets`), or, where the loss has another form, of the user's closure.

A repetition with the same parameters returns the same: dropout has the same masks, and batch
normalisation in training mode the statistics of the same batch, of whose dependence on the
parameters a repetition takes account. Buffers (running averages) are put back afterwards.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.optim.damping import ReductionRatio, reduction_ratio
from kobai.optim.kfac.observe import ForwardPass, accelerators
from kobai.optim.kfac.quadratic_model import QuadraticModel, quadratic_model
from kobai.problem import Likelihood, output_tensor

_UNFAITHFUL = 1e-3
"""Relative difference of outputs at which a repetition is not the same pass: far above rounding,
far below what other dropout masks do."""


@final
class Minibatch:
    """The examples of one step, and what the model makes of them.

    Args:
        model: The model.
        likelihood: What its outputs mean.
        passes: The forward passes of the step, with gradients.
        parameters: Those that are moved.
        closure: Of the user, or None.
        gather: Joins rows of examples across processes.
        scale: Factor of a gradient scaler, as last seen.

    Attributes:
        scale: The same, as seen here once a model was made.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        passes: Sequence[ForwardPass],
        parameters: Sequence[nn.Parameter],
        closure: Callable[[], Any] | None,
        gather: Callable[[Tensor], Tensor],
        scale: float = 1.0,
    ) -> None:
        self.model = model
        self.likelihood = likelihood
        self.passes = [one for one in passes if one.intact]
        self.parameters = parameters
        self.closure = closure
        self.gather = gather
        self._outputs: list[Tensor] | None = None
        self._targets: list[Tensor] | None = None
        self.scale = scale

    def fingerprint(self) -> list[float]:
        """Return numbers that tell these examples from others, whatever their order."""
        numbers = []
        for one in self.passes:
            for value in one.tensors():
                own = value.detach().double()
                numbers += [float(own.numel()), float(own.sum()), float(own.square().sum())]
        return self._shared(numbers).tolist()

    def check_repeatable(self) -> None:
        """See that the model returns the same when it is called again. Cost: a forward pass.

        Raises:
            RuntimeError: If it does not.
        """
        for f, again in zip(self._base(), repeat(self.model, self.passes), strict=True):
            off = float((again - f).abs().max())
            if off > _UNFAITHFUL * max(1.0, float(f.abs().max())):
                raise RuntimeError(
                    "called again on the same inputs with the same random state, the model "
                    f"returned outputs that differ by {off:.3g}; automatic steps and damping need "
                    "a model that can be repeated: give lr and damping as numbers"
                )

    def model_along(
        self, directions: Sequence[Sequence[Tensor]], own: float
    ) -> QuadraticModel | None:
        """Make the quadratic model along each of the directions. Cost: a forward pass for each.

        Args:
            directions: Each one tensor a parameter.
            own: gᵀδ of the first with the gradients as they are.

        Raises:
            RuntimeError: If the targets cannot be known and there is no closure, or the model does
                not return the same outputs when it is called again.
        """
        outputs = self._base()
        changes = [self._changes(direction) for direction in directions]
        self._find_scale(changes[0], own)
        targets = self._known_targets()
        if targets is not None:
            found = quadratic_model(self.likelihood, outputs, targets, changes)
            return self._joined(found)
        # The closure's loss is one number; its slopes are those of the gradients.
        masks = [
            self.likelihood.placeholder_targets(f, self._gradient(one))
            for f, one in zip(outputs, self.passes, strict=True)
        ]
        bent = self._joined(quadratic_model(self.likelihood, outputs, masks, changes)).bend
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        slopes = [
            math.fsum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
            for direction in directions
        ]
        return QuadraticModel(
            losses=self._by_closure(),
            linear=torch.tensor([slopes], dtype=torch.float64, device=bent.device),
            curvature=bent.unsqueeze(0),
            weight=1.0,
        )

    def ratio(
        self,
        model: QuadraticModel,
        step: Sequence[Tensor],
        scale: float,
        coefficients: Tensor,
    ) -> ReductionRatio:
        """Return the reduction ratio of scale · step on these examples. Cost: a forward pass."""
        with moved(self.parameters, step, scale):
            after = self._losses()
        return reduction_ratio(
            model.losses,
            after,
            model.change(scale * coefficients),
            model.weight,
            precision=self.parameters[0].dtype,
            outputs=self._size(),
        )

    def fresh_ratio(self, step: Sequence[Tensor], predicted: float) -> ReductionRatio:
        """Return the ratio of the step that led here, on these examples. Cost: a forward pass.

        Args:
            step: The last update.
            predicted: The change its own examples predicted.
        """
        self._base()
        after = self._losses(here=True)
        with moved(self.parameters, step, -1.0):
            before = self._losses()
        weight = float(len(after)) if self._targets is None else self._weight()
        share = predicted * weight / len(after)
        return reduction_ratio(
            before,
            after,
            torch.full_like(after, share),
            weight,
            precision=self.parameters[0].dtype,
            outputs=self._size(),
        )

    def _base(self) -> list[Tensor]:
        """Outputs at the present parameters, in full precision."""
        if self._outputs is None:
            if any(one.autocast is not None for one in self.passes):
                for one in self.passes:
                    one.autocast = None
                self._outputs = repeat(self.model, self.passes)
            else:
                self._outputs = [one.outputs for one in self.passes]
        return self._outputs

    def _size(self) -> float:
        """Mean over examples of their largest output."""
        sizes = [
            float(f.abs().reshape(len(f), -1).amax(1).mean()) for f in self._base() if f.numel()
        ]
        return float(self._shared([sum(sizes) / len(sizes)]).mean())

    def _changes(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """J δ by a difference quotient, whose error is far below the noise of a minibatch."""
        outputs = self._base()
        length = _norm(direction)
        if length == 0 or not math.isfinite(length):
            return [torch.zeros_like(f) for f in outputs]
        precision = torch.finfo(self.parameters[0].dtype).eps
        small = 4 * math.sqrt(precision) * max(_norm(self.parameters), 1e-3) / length
        with moved(self.parameters, direction, small):
            there = repeat(self.model, self.passes)
        return [(a - b) / small for a, b in zip(there, outputs, strict=True)]

    def _gradient(self, one: ForwardPass) -> Tensor:
        assert one.gradient is not None
        gradient = one.gradient
        if gradient.dtype in (torch.float16, torch.bfloat16):
            return gradient if self.scale == 1.0 else gradient.float() / self.scale
        return gradient / self.scale if self.scale != 1.0 else gradient

    def _find_scale(self, change: Sequence[Tensor], own: float) -> None:
        """A gradient scaler's factor: a power of two between the outputs' gradient and ours."""
        seen = math.fsum(
            float((one.gradient.double() * u).sum())
            for one, u in zip(self.passes, change, strict=True)
            if one.gradient is not None
        )
        ratio = float(self._shared([seen]).mean()) / own if own else 1.0
        self.scale = 1.0
        if ratio > 1.5 and math.isfinite(ratio):
            power = 2.0 ** round(math.log2(ratio))
            if abs(ratio / power - 1) < 0.05:
                self.scale = power

    def _known_targets(self) -> list[Tensor] | None:
        """The targets, read off once; None where the closure has to serve."""
        if self._targets is None:
            targets = []
            for f, one in zip(self._base(), self.passes, strict=True):
                assert one.gradient is not None
                found = self.likelihood.recover_targets(
                    f, self._gradient(one), precision=one.gradient.dtype
                )
                if found.targets is None:
                    if self.closure is not None:
                        return None
                    raise RuntimeError(
                        f"the loss is not the plain {self.likelihood.name} loss, or hides its "
                        f"targets: {found.reason}. Call optimizer.step(closure) with a closure "
                        "that returns the loss, give the optimizer the likelihood with the loss's "
                        "own scale and reduction, or give lr and damping as numbers"
                    )
                targets.append(found.targets)
            self._targets = targets
        return self._targets

    def _weight(self) -> float:
        assert self._targets is not None
        own = sum(self.likelihood.weight(y) for y in self._targets)
        return float(self._shared([own]).sum())

    def _losses(self, here: bool = False) -> Tensor:
        """Losses of the examples at the parameters as they are."""
        targets = self._known_targets()
        if targets is None:
            return self._by_closure()
        outputs = self._base() if here else repeat(self.model, self.passes)
        rows = [self.likelihood.nll(f, y).double() for f, y in zip(outputs, targets, strict=True)]
        return self.gather(torch.cat(rows))

    def _by_closure(self) -> Tensor:
        """The user's loss, leaving gradients, buffers and random states as they were."""
        assert self.closure is not None
        every = list(self.model.parameters())
        kept = [(p, p.grad) for p in every]
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        for p in every:
            p.grad = None
        with torch.random.fork_rng(), torch.enable_grad():
            if self.passes and self.passes[0].random is not None:
                torch.set_rng_state(self.passes[0].random[0])
            value = self.closure()
        for p, gradient in kept:
            p.grad = gradient
        with torch.no_grad():
            for buffer, old in buffers:
                buffer.copy_(old)
        return torch.as_tensor(value).detach().double().reshape(1)

    def _shared(self, numbers: Sequence[float]) -> Tensor:
        """Numbers of all processes."""
        device = self.parameters[0].device
        return self.gather(torch.tensor(numbers, dtype=torch.float64, device=device))

    def _joined(self, own: QuadraticModel) -> QuadraticModel:
        return QuadraticModel(
            losses=self.gather(own.losses),
            linear=self.gather(own.linear),
            curvature=self.gather(own.curvature),
            weight=float(self._shared([own.weight]).sum()),
        )


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(
        math.fsum(float(t.detach().square().sum(dtype=torch.float64)) for t in tensors)
    )


@torch.no_grad()
def repeat(model: nn.Module, passes: Sequence[ForwardPass]) -> list[Tensor]:
    """Return the outputs of the same passes with the parameters as they are now.

    Neither buffers nor the states of random generators are changed. Cost: the forward passes.
    """
    devices = accelerators(model)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    outputs = []
    with torch.random.fork_rng([device.index or 0 for device in devices]):
        for one in passes:
            assert one.random is not None
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
    """Move parameters by scale · step while the context is open; then put them back to the bit."""
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
