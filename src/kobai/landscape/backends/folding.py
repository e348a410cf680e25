"""The same forward pass with fewer passes over memory: normalisation folded, ReLU in place.

A normalisation layer in evaluation mode scales and shifts each channel by constants of the point,
so it can be folded into the weights of the convolution before it, once a point instead of once an
image. A ReLU that alone reads what a layer has just written can write over it. Both change results
by rounding only, which the comparison with the plain loop confirms; a module that breaks the
assumptions (a value read a second time by a function that hooks cannot see) is found out there.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kobai.landscape.backends.data import Chunk
from kobai.landscape.backends.interface import Treatment, other_forwards
from kobai.landscape.backends.passes import Point
from kobai.layers.stock import (
    is_convolution,
    is_relu,
    output_with,
    scales_by_running_statistics,
    writes_fresh_output,
)
from kobai.problem import Batch, EmpiricalRisk, pure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folds:
    """Pairs of layers that can be computed as one.

    Attributes:
        norms: Path of a convolution to that of the normalisation layer after it.
        relus: Path of a ReLU to that of the layer whose output it alone reads.
    """

    norms: Mapping[str, str]
    relus: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.norms or self.relus)

    def beside(self, reused: Sequence[str]) -> "Folds | None":
        """Keep only the ReLUs that neither are nor write over modules whose output is reused.

        Normalisation layers are not folded beside reuse, which needs layers linear in θ.
        """
        relus = {r: w for r, w in self.relus.items() if r not in reused and w not in reused}
        return Folds(norms={}, relus=relus) if relus else None


def find_folds(objective: EmpiricalRisk, batch: Batch) -> Folds:
    """Find what can be folded, by one forward pass of a few examples.

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
        if (
            is_convolution(first)
            and not objective.coupled
            and scales_by_running_statistics(second, tensor)
        ):
            norms[writer] = read[0]
        elif is_relu(second) and (
            writes_fresh_output(first) or scales_by_running_statistics(first, tensor)
        ):
            relus[read[0]] = writer
    return Folds(norms=norms, relus=relus)


@final
class Folded(Treatment):
    """Lets folded modules compute less, with weights that follow the point.

    Args:
        objective: The empirical risk.
        folds: What to fold.
    """

    def __init__(self, objective: EmpiricalRisk, folds: Folds) -> None:
        self.objective, self.folds = objective, folds
        self._modules = dict(objective.model.named_modules())
        self._weights: dict[str, tuple[Tensor, Tensor]] = {}
        self.name = f"loop ({len(folds.norms)} normalisation layers folded)"
        named = dict(objective.model.named_parameters(remove_duplicate=False))
        first = {id(named[name]): name for name in objective.space.names}
        self._names = {place: first.get(id(parameter)) for place, parameter in named.items()}

    def move(self, point: Point, parameters: Mapping[str, Tensor], chunks: Sequence[Chunk]) -> None:
        """Fold the normalisation layers into the convolutions at these parameters."""

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

    def during(self) -> contextlib.AbstractContextManager[None]:
        """See `Treatment.during`."""
        forwards: dict[nn.Module, Callable[..., Tensor]] = {}
        for conv, norm in self.folds.norms.items():
            forwards[self._modules[conv]] = self._convolution(conv)
            forwards[self._modules[norm]] = lambda x: x
        for relu in self.folds.relus:
            forwards[self._modules[relu]] = F.relu_
        return other_forwards(forwards)

    def _convolution(self, path: str) -> Callable[[Tensor], Tensor]:
        module = self._modules[path]
        return lambda x: output_with(module, x, *self._weights[path])
