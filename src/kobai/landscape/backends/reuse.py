"""Exact reuse along a subspace: what does not move is computed once, what moves first is linear.

As long as no moved parameter has entered a forward pass, its intermediate values are the same at
every point. The first layer that does move sees such a constant input x, and if it is linear in its
parameters its output is linear in the coordinates c,

    f(x; θ₀ + Σ cᵢ dᵢ) = f(x; θ₀) + Σ cᵢ f(x; dᵢ),

so that D + 1 products serve the whole plane.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.landscape.backends.data import Chunk
from kobai.landscape.backends.interface import other_forwards
from kobai.landscape.backends.passes import AffineSum, MovedParameters, Point
from kobai.landscape.backends.reusable_calls import ReusableCall
from kobai.landscape.directions.subspace import Directions
from kobai.layers.stock import is_linear_in_parameters, output_with
from kobai.problem import Batch, EmpiricalRisk, pure

MEMORY_BOUND = 2**31
"""Bytes that kept values may take; beyond, the back-end is not offered."""

Handler = Callable[[ReusableCall, Callable[[], Any], tuple], Any]
"""Answers a reusable call: the call, the computation it stands for, its arguments."""


@final
class ReusedCalls:
    """Answers calls of submodules from what is kept; see the module's text.

    Values are kept for each chunk when it is first met.

    Args:
        objective: The empirical risk.
        directions: The subspace.
        calls: From `find_reusable_calls`.

    Attributes:
        name: What it is called in notes.
        point: Where the model runs now.
    """

    def __init__(
        self, objective: EmpiricalRisk, directions: Directions, calls: Sequence[ReusableCall]
    ) -> None:
        self.objective = objective
        self.directions = directions
        self.point: Point = ()
        self._calls = {(call.path, call.index): call for call in calls}
        self._modules = {call.path: objective.model.get_submodule(call.path) for call in calls}
        self._parts = {
            path: _parts(objective, directions, module)
            for path, module in self._modules.items()
            if is_linear_in_parameters(module)
        }
        self._kept: dict[int, dict[tuple[str, int], Any]] = {}
        self._owners: list[Chunk] = []
        self._now: dict[tuple[str, int], Any] = {}
        self._counts: collections.Counter[str] = collections.Counter()
        linear = sum(call.kind == "linear" for call in calls)
        constant = sum(call.kind == "constant" for call in calls)
        self.name = f"prefix ({linear} linear and {constant} constant calls reused)"

    @contextlib.contextmanager
    def during(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """Answer for the calls while this is open; chunks not met before are run at the origin."""
        unmet = [chunk for chunk in chunks if id(chunk) not in self._kept]
        if unmet:
            with self._answering(self._record):
                origin = self.objective.space.unflatten(self.directions.origin)
                for chunk in unmet:
                    self._kept[id(chunk)] = {}
                    self._owners.append(chunk)  # keeps the id from being given to another object
                    self.begin(chunk)
                    self.objective.forward_parameters(origin, chunk.batch)
        with self._answering(self._replay):
            yield

    def begin(self, chunk: Chunk) -> None:
        """Begin a forward pass over a chunk."""
        self._now = self._kept[id(chunk)]
        self._counts.clear()

    def holds(self, batch: Batch, points: Sequence[Point]) -> bool:
        """Tell whether what is to be reused is indeed the same, to the bit, at all points.

        Autograd does not see what goes through an argmax, a comparison or a detached value.
        """
        seen: dict[ReusableCall, Tensor] = {}
        differ: list[ReusableCall] = []

        def note(call: ReusableCall, value: Tensor) -> None:
            if not torch.equal(seen.setdefault(call, value.clone()), value):
                differ.append(call)

        def compare(call: ReusableCall, compute: Callable[[], Any], args: tuple) -> Any:
            if call.kind == "linear":
                note(call, args[0])
            output = compute()
            if call.kind == "constant":
                note(call, output)
            return output

        moved = MovedParameters(self.objective.space, self.directions)
        with (
            torch.no_grad(),
            pure(self.objective.model, coupled=self.objective.coupled),
            self._answering(compare),
        ):
            for point in points:
                self._counts.clear()
                self.objective.forward_parameters(moved.at(point), batch)
        return not differ

    def _answering(self, handler: Handler) -> contextlib.AbstractContextManager[None]:
        return other_forwards(
            {module: self._instead_of(p, module, handler) for p, module in self._modules.items()}
        )

    def _instead_of(self, path: str, module: nn.Module, handler: Handler) -> Callable[..., Any]:
        """Make what replaces a module's `forward`: it counts calls and hands them to a handler."""
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = self._calls.get((path, self._counts[path]))
            self._counts[path] += 1
            if call is None:
                return original(*args, **kwargs)
            before = self._counts.copy() if call.inner else None
            result = handler(call, lambda: original(*args, **kwargs), args)
            if before is not None:
                # Whether or not the inner calls took place, they count.
                self._counts = before + call.inner
            return result

        return forward

    def _record(self, call: ReusableCall, compute: Callable[[], Any], args: tuple) -> Any:
        """Compute a call as ever and keep what is needed again."""
        output = compute()
        if call.kind == "constant":
            self._now[call.path, call.index] = output.clone()
        elif call.kind == "linear":
            module = self._modules[call.path]
            parts = [
                None if part is None else output_with(module, args[0], *part)
                for part in self._parts[call.path]
            ]
            self._now[call.path, call.index] = AffineSum(output.clone(), parts)
        return output

    def _replay(self, call: ReusableCall, compute: Callable[[], Any], args: tuple) -> Any:
        """Answer a call from what was kept."""
        if call.kind == "bypass":
            return args[0]
        value = self._now[call.path, call.index]
        if isinstance(value, AffineSum):
            return value.at(tuple(self.point))
        return value.clone() if call.fragile else value


def _parts(
    objective: EmpiricalRisk, directions: Directions, module: nn.Module
) -> list[tuple[Tensor, Tensor | None] | None]:
    """Find weight and bias of a linear layer along each direction, None where it does not move."""
    space = objective.space
    named = dict(space.module.named_parameters())
    # By identity, because a tied parameter goes by its first name only.
    names = {id(named[name]): name for name in space.names}
    columns = space.unflatten_columns(directions.vectors)
    bias = getattr(module, "bias", None)
    weight = module.weight
    assert isinstance(weight, Tensor)
    found: list[tuple[Tensor, Tensor | None] | None] = []
    for k in range(directions.count):
        w, b = (
            columns[names[id(tensor)]][k] if id(tensor) in names else None
            for tensor in (weight, bias)
        )
        if not any(tensor is not None and bool(tensor.any()) for tensor in (w, b)):
            found.append(None)
        else:
            found.append((torch.zeros_like(weight) if w is None else w, b))
    return found
