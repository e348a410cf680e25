"""Calls of submodules whose results can be reused all over a subspace.

Which they are is read off autograd: when just the moved parameters need gradients, a value that
needs none does not depend on them.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kobai.landscape.directions.subspace import Directions
from kobai.layers.stock import is_linear_in_parameters, is_sequence
from kobai.problem import Batch, EmpiricalRisk, pure


@dataclasses.dataclass(eq=False)
class ReusableCall:
    """A call of a submodule in the forward pass, and what of it can be reused.

    Attributes:
        path: The submodule's name.
        index: Which of its calls, in order.
        kind: "constant", the output is kept; "linear", its D + 1 parts are; "bypass", the output
            only feeds a call whose input does not matter; "run", computed as ever.
        inner: Calls of other submodules inside this one, which are skipped with it.
        fragile: The output is modified in place later, so each point gets a copy.
        nbytes: Size of the output.
    """

    path: str
    index: int
    kind: Literal["constant", "linear", "bypass", "run"] = "run"
    inner: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    fragile: bool = False
    nbytes: int = 0
    children: list["ReusableCall"] = dataclasses.field(default_factory=list)
    output: Tensor | None = None
    versions: tuple[int, ...] = ()


def find_reusable_calls(
    objective: EmpiricalRisk, directions: Directions, batch: Batch
) -> list[ReusableCall]:
    """Find the calls that can be reused along a subspace, by a forward pass of a few examples.

    Args:
        objective: The empirical risk.
        directions: The subspace.
        batch: Examples for the pass; two are enough.

    Returns:
        Calls of kind "constant", "linear" and "bypass"; empty if nothing can be reused.
    """
    model, space = objective.model, objective.space
    moved = {
        name: bool(columns.any())
        for name, columns in space.unflatten_columns(directions.vectors).items()
    }
    parameters = {
        name: value.clone().requires_grad_(moved[name])
        for name, value in space.unflatten(directions.origin).items()
    }
    root = _trace(objective, parameters, batch)
    found: list[ReusableCall] = []
    _collect(root, dict(model.named_modules()), found)
    return found


def _trace(objective: EmpiricalRisk, parameters: dict[str, Tensor], batch: Batch) -> ReusableCall:
    """Build the tree of calls in one forward pass, with what autograd knows about each."""
    counts: collections.Counter[str] = collections.Counter()
    top: list[ReusableCall] = []
    stack: list[ReusableCall] = []
    handles = []

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            parent = stack[-1] if stack else None
            call = ReusableCall(path, counts[path])
            call.versions = tuple(t._version for t in _tensors((args, kwargs)))
            counts[path] += 1
            for outer in stack:
                outer.inner[path] += 1
            (parent.children if parent else top).append(call)
            stack.append(call)

        return hook

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        call = stack.pop()
        inputs = _tensors((args, kwargs))
        untouched = call.versions == tuple(t._version for t in inputs)
        if not isinstance(output, Tensor) or not untouched:
            return
        constant_input = all(not t.requires_grad for t in inputs)
        aliases = {t.untyped_storage().data_ptr() for t in inputs}
        if not output.requires_grad:
            # A view of the input costs nothing and would be kept for nothing.
            if output.untyped_storage().data_ptr() not in aliases:
                call.kind = "constant"
        elif constant_input and len(args) == 1 and not kwargs and _is_linear(module):
            call.kind = "linear"
        call.output, call.nbytes = output, output.nbytes
        call.versions = (output._version,)

    with pure(objective.model, coupled=objective.coupled), torch.enable_grad():
        try:
            for path, module in objective.model.named_modules():
                handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
            objective.forward_parameters(parameters, batch)
        finally:
            for handle in handles:
                handle.remove()
    for call in _walk(top[0]):
        if call.output is not None:
            call.fragile = call.kind == "constant" and call.output._version != call.versions[0]
            call.output = None
    return top[0]


def _walk(call: ReusableCall) -> Iterator[ReusableCall]:
    yield call
    for child in call.children:
        yield from _walk(child)


def _collect(call: ReusableCall, modules: dict[str, nn.Module], found: list[ReusableCall]) -> None:
    """Collect the outermost reusable calls; of a sequence, only the last constant one is kept."""
    if call.kind != "run":
        found.append(call)
        return
    if is_sequence(modules[call.path]):
        for child, following in zip(call.children, call.children[1:], strict=False):
            if child.kind == "constant" and following.kind in ("constant", "linear"):
                child.kind = "bypass"
    for child in call.children:
        _collect(child, modules, found)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for item in value for t in _tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item)]
    return []


def _is_linear(module: nn.Module) -> bool:
    return is_linear_in_parameters(module) and "forward" not in module.__dict__


def kept_bytes(calls: Sequence[ReusableCall], count: int) -> int:
    """Count the bytes kept for the examples of the trace and `count` directions."""
    factor = {"constant": 1, "linear": count + 2, "bypass": 0, "run": 0}
    return sum(call.nbytes * factor[call.kind] for call in calls)
