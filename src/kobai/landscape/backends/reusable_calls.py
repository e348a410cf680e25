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
from kobai.problem import Batch, EmpiricalRisk, pure

LINEAR_TYPES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""Layers whose output is linear in their own parameters, for a fixed input."""


@dataclasses.dataclass(eq=False)
class Site:
    """A call of a submodule in the forward pass.

    Attributes:
        path: The submodule's name.
        index: Which of its calls, in order.
        kind: "constant", the output is kept; "linear", its D + 1 parts are; "bypass", the output
            only feeds a site whose input does not matter; "run", computed as ever.
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
    parent: "Site | None" = None
    children: list["Site"] = dataclasses.field(default_factory=list)
    output: Tensor | None = None
    versions: tuple[int, ...] = ()


def find_sites(objective: EmpiricalRisk, directions: Directions, batch: Batch) -> list[Site]:
    """The calls that can be reused along the subspace, from one forward pass of a few examples.

    Args:
        objective: The empirical risk.
        directions: The subspace.
        batch: Examples for the pass; two are enough.

    Returns:
        Sites of kind "constant", "linear" and "bypass"; empty if nothing can be reused.
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
    found: list[Site] = []
    _collect(root, dict(model.named_modules()), found)
    return found


def _trace(objective: EmpiricalRisk, parameters: dict[str, Tensor], batch: Batch) -> Site:
    """The tree of calls in one forward pass, with what autograd knows about each."""
    counts: collections.Counter[str] = collections.Counter()
    top: list[Site] = []
    stack: list[Site] = []
    handles = []

    def before(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            parent = stack[-1] if stack else None
            site = Site(path, counts[path], parent=parent)
            site.versions = tuple(t._version for t in _tensors((args, kwargs)))
            counts[path] += 1
            for outer in stack:
                outer.inner[path] += 1
            (parent.children if parent else top).append(site)
            stack.append(site)

        return hook

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        site = stack.pop()
        inputs = _tensors((args, kwargs))
        untouched = site.versions == tuple(t._version for t in inputs)
        if not isinstance(output, Tensor) or not untouched:
            return
        constant_input = all(not t.requires_grad for t in inputs)
        aliases = {t.untyped_storage().data_ptr() for t in inputs}
        if not output.requires_grad:
            # A view of the input costs nothing and would be kept for nothing.
            if output.untyped_storage().data_ptr() not in aliases:
                site.kind = "constant"
        elif constant_input and _is_linear(module, args, kwargs):
            site.kind = "linear"
        site.output, site.nbytes = output, output.nbytes
        site.versions = (output._version,)

    with pure(objective.model, coupled=objective.coupled), torch.enable_grad():
        try:
            for path, module in objective.model.named_modules():
                handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
                handles.append(module.register_forward_hook(after, with_kwargs=True))
            objective.forward_parameters(parameters, batch)
        finally:
            for handle in handles:
                handle.remove()
    for site in _walk(top[0]):
        if site.output is not None:
            site.fragile = site.kind == "constant" and site.output._version != site.versions[0]
            site.output = None
    return top[0]


def _walk(site: Site) -> Iterator[Site]:
    yield site
    for child in site.children:
        yield from _walk(child)


def _collect(site: Site, modules: dict[str, nn.Module], found: list[Site]) -> None:
    """The outermost reusable calls; in a Sequential, only the last constant one is kept."""
    if site.kind != "run":
        found.append(site)
        return
    if type(modules[site.path]) is nn.Sequential:
        for child, following in zip(site.children, site.children[1:], strict=False):
            if child.kind == "constant" and following.kind in ("constant", "linear"):
                child.kind = "bypass"
    for child in site.children:
        _collect(child, modules, found)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [t for item in value for t in _tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in _tensors(item)]
    return []


def _is_linear(module: nn.Module, args: tuple, kwargs: dict) -> bool:
    """Whether the call is linear in the module's own parameters, by its exact type."""
    if type(module) not in LINEAR_TYPES or len(args) != 1 or kwargs:
        return False
    if "forward" in module.__dict__:
        return False
    return not (isinstance(module, nn.Embedding) and module.max_norm is not None)


def kept_bytes(sites: Sequence[Site], count: int) -> int:
    """Bytes kept for the examples of the trace and `count` directions."""
    factor = {"constant": 1, "linear": count + 2, "bypass": 0, "run": 0}
    return sum(site.nbytes * factor[site.kind] for site in sites)
