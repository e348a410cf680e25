"""Exact reuse along a subspace: what does not move is computed once, what moves first is linear.

As long as no moved parameter has entered a forward pass, its intermediate values are the same at
every point. The first layer that does move sees such a constant input x, and if it is linear in its
parameters its output is linear in the coordinates c,

    f(x; θ₀ + Σ cᵢ dᵢ) = f(x; θ₀) + Σ cᵢ f(x; dᵢ),

so that D + 1 products serve the whole plane.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kobai.landscape.backends.data import Chunk
from kobai.landscape.backends.folding import Folded, Folds
from kobai.landscape.backends.loop import Backend, Mover, Pending, Point, Reduce
from kobai.landscape.backends.reusable_calls import LINEAR_TYPES, Site
from kobai.landscape.directions.subspace import Directions
from kobai.problem import Batch, EmpiricalRisk, ParameterSpace, pure

MEMORY_BOUND = 2**31
"""Bytes that kept values may take; beyond, the back-end is not offered."""


@final
class PrefixBackend(Backend):
    """The loop without what can be reused; see the module's text.

    Values are kept for each chunk when it is first met.

    Args:
        objective: The empirical risk.
        directions: The subspace.
        sites: From `find_sites`.
        folds: ReLUs that may write over their input.
    """

    name = "prefix"

    def __init__(
        self,
        objective: EmpiricalRisk,
        directions: Directions,
        sites: Sequence[Site],
        *,
        folds: Folds | None = None,
    ) -> None:
        # What is kept must not be written over, and folded weights are not linear in θ.
        kept = [site.path for site in sites if site.kind != "linear"]
        folds = folds.without(kept, norms=False) if folds else None
        self._folded = Folded(objective, folds) if folds else None
        self.objective = objective
        self.directions = directions
        self._mover = Mover(objective.space, directions)
        self._sites = {(site.path, site.index): site for site in sites}
        self._modules = {
            site.path: objective.model.get_submodule(site.path) if site.path else objective.model
            for site in sites
        }
        self._tangents = _tangents(objective.space, directions, self._modules)
        self._kept: dict[int, dict[tuple[str, int], Any]] = {}
        self._owners: list[Chunk] = []
        linear = sum(site.kind == "linear" for site in sites)
        constant = sum(site.kind == "constant" for site in sites)
        self.name = f"prefix ({linear} linear and {constant} constant calls reused)"

    def holds(self, batch: Batch, points: Sequence[Point]) -> bool:
        """Whether what is to be reused is indeed the same, to the bit, at all of these points.

        Autograd does not see what goes through an argmax, a comparison or a detached value.
        """
        seen = _Compare({})
        with (
            torch.no_grad(),
            pure(self.objective.model, coupled=self.objective.coupled),
            self._answering() as answers,
        ):
            for point in points:
                answers.begin(seen)
                self.objective.forward_parameters(self._mover.parameters(point), batch)
        return seen.same

    def sums(self, points: Sequence[Point], chunks: Sequence[Chunk], reduce: Reduce) -> Tensor:
        """See `Backend.sums`."""
        rows = []
        with contextlib.ExitStack() as stack:
            if self._folded is not None:
                stack.enter_context(self._folded.answering())
            answers = stack.enter_context(self._answering())
            for chunk in chunks:
                if id(chunk) not in self._kept:
                    self._record(chunk, answers)
            for point in points:
                parameters = self._mover.parameters(point)
                pending = Pending(reduce)
                for chunk in chunks:
                    answers.begin(_Replay(self._kept[id(chunk)], point))
                    outputs = self.objective.forward_parameters(parameters, chunk.batch)
                    pending.add(outputs, chunk)
                rows.append(pending.total())
        return torch.stack(rows)

    def _record(self, chunk: Chunk, answers: "_Answers") -> None:
        kept: dict[tuple[str, int], Any] = {}
        origin = self.objective.space.unflatten(self.directions.origin)
        answers.begin(_Record(kept, self._tangents))
        self.objective.forward_parameters(origin, chunk.batch)
        self._kept[id(chunk)] = kept
        self._owners.append(chunk)  # keeps the id from being given to another object

    @contextlib.contextmanager
    def _answering(self) -> Iterator["_Answers"]:
        """Let a handler answer for the calls at the sites; the modules get their own back."""
        answers = _Answers(self._sites)
        try:
            for path, module in self._modules.items():
                module.__dict__["forward"] = answers.instead_of(path, module)
            yield answers
        finally:
            for module in self._modules.values():
                module.__dict__.pop("forward", None)


class _Answers:
    """Counts the calls of the modules that have sites and passes those on to a handler."""

    def __init__(self, sites: dict[tuple[str, int], Site]) -> None:
        self.sites = sites
        self.counts: collections.Counter[str] = collections.Counter()
        self.handle: _Record | _Replay | _Compare | None = None

    def begin(self, handle: "_Record | _Replay | _Compare") -> None:
        """A new forward pass."""
        self.handle = handle
        self.counts.clear()

    def instead_of(self, path: str, module: nn.Module) -> Callable[..., Any]:
        """What the module's `forward` is replaced by."""
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            key = (path, self.counts[path])
            self.counts[path] += 1
            site = self.sites.get(key)
            if site is None:
                return original(*args, **kwargs)
            assert self.handle is not None
            before = self.counts.copy() if site.inner else None
            result = self.handle(site, key, module, original, args, kwargs)
            if before is not None:
                # Whether or not the inner calls took place, they count.
                self.counts = before + site.inner
            return result

        return forward


@dataclasses.dataclass(eq=False)
class _Record:
    """Computes every site as ever and keeps what is needed again."""

    kept: dict[tuple[str, int], Any]
    tangents: dict[str, list[tuple[Tensor, Tensor | None] | None]]

    def __call__(
        self,
        site: Site,
        key: tuple[str, int],
        module: nn.Module,
        original: Callable[..., Any],
        args: tuple,
        kwargs: dict,
    ) -> Any:
        output = original(*args, **kwargs)
        if site.kind == "constant":
            self.kept[key] = output.clone()
        elif site.kind == "linear":
            parts = [
                None if tangent is None else _linear_part(module, args[0], *tangent)
                for tangent in self.tangents[site.path]
            ]
            self.kept[key] = _Linear(output.clone(), parts)
        return output


@dataclasses.dataclass(eq=False)
class _Compare:
    """Computes every site as ever and compares what would be reused between points."""

    seen: dict[tuple[str, int], Tensor]
    same: bool = True

    def __call__(
        self,
        site: Site,
        key: tuple[str, int],
        module: nn.Module,
        original: Callable[..., Any],
        args: tuple,
        kwargs: dict,
    ) -> Any:
        if site.kind == "linear":
            self._note(key, args[0])
            return original(*args, **kwargs)
        output = original(*args, **kwargs)
        if site.kind == "constant":
            self._note(key, output)
        return output

    def _note(self, key: tuple[str, int], value: Tensor) -> None:
        known = self.seen.setdefault(key, value.clone())
        self.same = self.same and torch.equal(known, value)


@dataclasses.dataclass(eq=False)
class _Linear:
    """Output of a linear site at the origin and its parts along the directions."""

    base: Tensor
    parts: list[Tensor | None]
    row: tuple[Point, Tensor] | None = None

    def at(self, point: Point) -> Tensor:
        """A fresh tensor with the output at the coordinates."""
        *before, last = point
        if self.parts[-1] is None:
            return self._row(tuple(before)).clone()
        return torch.add(self._row(tuple(before)), self.parts[-1], alpha=last)

    def _row(self, before: Point) -> Tensor:
        """The sum over all coordinates but the last, kept along a row of the grid."""
        if self.row is None or self.row[0] != before:
            total = self.base
            for value, part in zip(before, self.parts, strict=False):
                if part is not None:
                    total = torch.add(total, part, alpha=value)
            self.row = (before, total)
        return self.row[1]


@dataclasses.dataclass(eq=False)
class _Replay:
    """Answers for the sites from what was kept."""

    kept: dict[tuple[str, int], Any]
    point: Point

    def __call__(
        self,
        site: Site,
        key: tuple[str, int],
        module: nn.Module,
        original: Callable[..., Any],
        args: tuple,
        kwargs: dict,
    ) -> Any:
        if site.kind == "bypass":
            return args[0]
        value = self.kept[key]
        if isinstance(value, _Linear):
            return value.at(self.point)
        return value.clone() if site.fragile else value


def _tangents(
    space: ParameterSpace, directions: Directions, modules: dict[str, nn.Module]
) -> dict[str, list[tuple[Tensor, Tensor | None] | None]]:
    """Weight and bias of each linear module along each direction, None where it does not move."""
    named = dict(space.module.named_parameters())
    # By identity, because a tied parameter goes by its first name only.
    names = {id(named[name]): name for name in space.names}
    columns = space.unflatten_columns(directions.vectors)
    found: dict[str, list[tuple[Tensor, Tensor | None] | None]] = {}
    for path, module in modules.items():
        if type(module) not in LINEAR_TYPES:
            continue
        weight, bias = module.weight, getattr(module, "bias", None)
        along: list[tuple[Tensor, Tensor | None] | None] = []
        for k in range(directions.count):

            def part(parameter: Any, k: int = k) -> Tensor | None:
                name = None if parameter is None else names.get(id(parameter))
                return None if name is None else columns[name][k]

            w, b = part(weight), part(bias)
            moves = any(t is not None and bool(t.any()) for t in (w, b))
            if not moves:
                along.append(None)
                continue
            assert isinstance(weight, Tensor)
            along.append((torch.zeros_like(weight) if w is None else w, b))
        found[path] = along
    return found


def _linear_part(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The module's output with other parameters."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(module, nn.Embedding):
        return F.embedding(x, weight)
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return module._conv_forward(x, weight, bias)
