"""The same forward pass with fewer passes over memory: normalisation folded, ReLU in place.

A normalisation layer in evaluation mode scales and shifts each channel by constants of the point,
so it can be folded into the weights of the convolution before it, once a point instead of once an
image. A ReLU that alone reads what a layer has just written can write over it. Both change results
by rounding only, which the comparison with the plain loop confirms; a module that breaks the
assumptions (a value read a second time by a function that hooks cannot see) is found out there.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kobai.problem import Batch, EmpiricalRisk, pure

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WRITERS = (*_CONVOLUTIONS, nn.Linear)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folds:
    """What can be folded in a model.

    Attributes:
        norms: Path of a convolution to that of the normalisation layer after it.
        relus: Path of a ReLU to that of the layer whose output it alone reads.
    """

    norms: Mapping[str, str]
    relus: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.norms or self.relus)

    def without(self, paths: Sequence[str], *, norms: bool) -> "Folds":
        """Leave out ReLUs at or after modules, and normalisation layers unless they are wanted."""
        relus = {r: w for r, w in self.relus.items() if r not in paths and w not in paths}
        if not norms:
            # Their ReLUs read what a layer wrote that now runs as ever; that is as good.
            return Folds(norms={}, relus=relus)
        return Folds(norms=self.norms, relus=relus)


def find_folds(objective: EmpiricalRisk, batch: Batch) -> Folds:
    """Look through one forward pass of a few examples.

    Only modules that are called once, and whose output exactly one module reads, are taken.
    """
    model = objective.model
    made: dict[int, str] = {}
    readers: dict[int, list[str]] = {}
    calls: dict[str, int] = {}
    alive: list[Tensor] = []
    handles = []

    def hook(path: str) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple, output: Any) -> None:
            calls[path] = calls.get(path, 0) + 1
            leaf = not any(True for _ in module.children())
            for tensor in args:
                if isinstance(tensor, Tensor) and leaf:
                    readers.setdefault(id(tensor), []).append(path)
                    alive.append(tensor)
            if isinstance(output, Tensor) and leaf:
                made[id(output)] = path
                alive.append(output)

        return after

    with torch.no_grad(), pure(model, coupled=objective.coupled):
        try:
            for path, module in model.named_modules(remove_duplicate=False):
                handles.append(module.register_forward_hook(hook(path)))
            objective.forward_parameters(objective.space.unflatten(objective.theta()), batch)
        finally:
            for handle in handles:
                handle.remove()
    modules = dict(model.named_modules())
    norms: dict[str, str] = {}
    relus: dict[str, str] = {}
    for tensor in {id(t): t for t in alive}.values():
        writer, read = made.get(id(tensor)), readers.get(id(tensor), [])
        if writer is None or len(read) != 1 or calls[writer] != 1 or calls[read[0]] != 1:
            continue
        first, second = modules.get(writer), modules.get(read[0])
        if first is None or second is None or "forward" in {*first.__dict__, *second.__dict__}:
            continue
        if type(first) in _CONVOLUTIONS and not objective.coupled and _is_norm(second, tensor):
            norms[writer] = read[0]
        elif type(second) is nn.ReLU and (type(first) in _WRITERS or _is_norm(first, tensor)):
            relus[read[0]] = writer
    return Folds(norms=norms, relus=relus)


def _is_norm(module: nn.Module, x: Tensor) -> bool:
    """Whether a module is a batch normalisation by running statistics, by what it computes."""
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or module.training:
        return False
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    epsilon = getattr(module, "eps", None)
    if x.ndim < 3 or x.shape[1] != len(mean) or not isinstance(epsilon, float):
        return False
    with torch.no_grad():
        wanted = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)
        return bool(torch.allclose(module(x), wanted, rtol=1e-5, atol=1e-6, equal_nan=True))


class Folded:
    """Answers for the modules of a model while it is open; `move` tells it the point.

    Args:
        objective: The empirical risk.
        folds: What to fold.
    """

    def __init__(self, objective: EmpiricalRisk, folds: Folds) -> None:
        self.objective, self.folds = objective, folds
        self._modules = dict(objective.model.named_modules())
        self._weights: dict[str, tuple[Tensor, Tensor]] = {}
        named = dict(objective.model.named_parameters(remove_duplicate=False))
        first = {id(named[name]): name for name in objective.space.names}
        self._names = {place: first.get(id(parameter)) for place, parameter in named.items()}

    def move(self, parameters: Mapping[str, Tensor]) -> None:
        """Fold the normalisation layers at these parameters."""

        def current(path: str, name: str) -> Tensor | None:
            place = f"{path}.{name}"
            known = self._names.get(place)
            if known is not None:
                return parameters[known]
            return getattr(self._modules[path], name, None)

        for conv, norm in self.folds.norms.items():
            layer = self._modules[norm]
            mean, variance = layer.running_mean, layer.running_var
            assert isinstance(mean, Tensor)
            assert isinstance(variance, Tensor)
            scale = torch.rsqrt(variance + layer.eps)  # type: ignore[operator]
            gain, shift = current(norm, "weight"), current(norm, "bias")
            scale = scale if gain is None else scale * gain
            weight, bias = current(conv, "weight"), current(conv, "bias")
            assert weight is not None
            offset = -mean if bias is None else bias - mean
            moved = offset * scale if shift is None else torch.addcmul(shift, offset, scale)
            shape = (-1, *[1] * (weight.ndim - 1))
            self._weights[conv] = (weight * scale.view(shape), moved)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Let the folded modules compute less; they get their own ways back."""
        try:
            for conv, norm in self.folds.norms.items():
                self._modules[conv].__dict__["forward"] = self._convolution(conv)
                self._modules[norm].__dict__["forward"] = lambda x: x
            for relu in self.folds.relus:
                self._modules[relu].__dict__["forward"] = F.relu_
            yield
        finally:
            changed = (*self.folds.norms, *self.folds.norms.values(), *self.folds.relus)
            for path in changed:
                self._modules[path].__dict__.pop("forward", None)

    def _convolution(self, path: str) -> Callable[[Tensor], Tensor]:
        module = self._modules[path]
        assert isinstance(module, _CONVOLUTIONS)
        return lambda x: module._conv_forward(x, *self._weights[path])
