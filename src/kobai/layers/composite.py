"""Matrices inside attention and recurrent layers, seen by running the layer once more by itself.

Such a layer multiplies by several matrices within one fused function. When the gradients in its
outputs are known, the layer alone is evaluated again in steps that show every matrix: the vectors
it multiplies and the gradients in its products. Nothing of the model's own pass changes. Cost: one
more forward and backward pass of the layer.

Time steps of a recurrent layer are places where its matrices are used, like the tokens of a linear
layer.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kobai.layers.interface import CompositeKind


@dataclasses.dataclass(slots=True, eq=False)
class Product:
    """One matrix of a layer at work: inputs a, and products W a (+ b) in the graph.

    Attributes:
        slot: Which matrix.
        group: Which of its groups; None where it has one.
        inputs: (E, T, K) for E examples and T places.
        outputs: (E, T, M), the tensor that later steps have used.
    """

    slot: str
    group: int | None
    inputs: Tensor
    outputs: Tensor


@dataclasses.dataclass(slots=True, eq=False)
class CompositeCall:
    """A call of a composite layer.

    Attributes:
        layer: Its path.
        module: The layer.
        kind: Its kind.
        parameters: Its parameters as they were.
        arguments: Positional and keyword arguments by the names of its forward method, detached.
        edges: Places of its output tensors in the graph.
        positions: Which of the flattened outputs these are.
        size: Number of entries of the outputs.
        random: State of the random numbers before the call, where it draws some.
    """

    layer: str
    module: Any
    kind: CompositeKind
    parameters: dict[str, Tensor]
    arguments: dict[str, Any]
    edges: list[GradientEdge]
    positions: list[int]
    size: int
    random: tuple[torch.device, Tensor] | None

    def products(
        self, gradients: Sequence[Tensor | None], *, batched: bool
    ) -> list[tuple[Product, Tensor]]:
        """Every use of a matrix with the gradients in its products, (Q, E, T, M).

        Args:
            gradients: In the outputs at `edges`; with `batched`, one axis Q in front.
            batched: Whether there is that axis.
        """
        known = [
            (position, g if batched else g.unsqueeze(0))
            for position, g in zip(self.positions, gradients, strict=True)
            if g is not None
        ]
        if not known:
            return []
        device = known[0][1].device
        with (
            torch.enable_grad(),
            torch.autocast(device.type, enabled=False),
            _random_state(self.random),
        ):
            outputs, products = self.kind.replay(self.module, self.parameters, self.arguments)
        flat = _tensors(outputs)
        roots = [flat[position] for position, _ in known]
        columns = []
        for q in range(known[0][1].shape[0]):
            columns.append(
                torch.autograd.grad(
                    roots, [p.outputs for p in products],
                    [g[q].to(root.dtype) for root, (_, g) in zip(roots, known, strict=True)],
                    retain_graph=True, allow_unused=True, materialize_grads=True,
                )
            )  # fmt: skip
        return _together(
            [
                (p, torch.stack(own))
                for p, own in zip(products, zip(*columns, strict=True), strict=True)
            ]
        )


def attach_composites(
    model: nn.Module, wanted: Mapping[nn.Module, CompositeKind], record: list[CompositeCall]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Note the calls of composite layers for as long as the handles are kept.

    Args:
        model: The model to watch.
        wanted: The submodules and their kinds.
        record: Where the calls go.
    """
    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in model.named_modules():
        if module in wanted:
            handles += _watch(name, module, wanted[module], record)
    return handles


def _watch(
    name: str, module: nn.Module, kind: CompositeKind, record: list[CompositeCall]
) -> list[torch.utils.hooks.RemovableHandle]:
    random: list[tuple[torch.device, Tensor] | None] = [None]

    def before(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        random[0] = None
        if module.training and getattr(module, "dropout", 0.0):
            first = next(iter(_tensors((arguments, named))))
            state = torch.cuda.get_rng_state(first.device) if first.is_cuda else (
                torch.get_rng_state()
            )  # fmt: skip
            random[0] = first.device, state

    def after(module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        flat = _tensors(output)
        if not any(t.requires_grad for t in flat):
            return None
        bound = inspect.signature(module.forward).bind(*arguments, **named)
        bound.apply_defaults()
        if any(
            isinstance(value, nn.utils.rnn.PackedSequence) for value in bound.arguments.values()
        ):
            raise TypeError(
                f"{name} ({type(module).__name__}) was called with a packed sequence, whose places "
                "cannot be seen one by one; pad the sequences, or freeze the layer's parameters"
            )
        output = _owned(output, always=kind.one_step)
        flat = _tensors(output)
        chosen = [i for i, t in enumerate(flat) if t.requires_grad]
        record.append(
            CompositeCall(
                layer=name,
                module=module,
                kind=kind,
                parameters={n: p.detach() for n, p in module.named_parameters()},
                arguments=_detached(dict(bound.arguments)),
                edges=[get_gradient_edge(flat[i]) for i in chosen],
                positions=chosen,
                size=sum(t.numel() for t in flat),
                random=random[0],
            )
        )
        return output

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]


def _owned(value: Any, always: bool) -> Any:
    """The same outputs with places of their own in the graph.

    Later work in place would reroute gradients past a view. And a cell's memory is also a step on
    the way to its state, whose gradient must not count twice.
    """
    if isinstance(value, Tensor):
        return (
            value.clone() if value.requires_grad and (always or value._base is not None) else value
        )
    if isinstance(value, tuple):
        return tuple(_owned(v, always) for v in value)
    return value


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple | list):
        return type(value)(_detached(v) for v in value)
    if isinstance(value, dict):
        return {key: _detached(v) for key, v in value.items()}
    return value


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [t for v in value for t in _tensors(v)]
    return []


@contextlib.contextmanager
def _random_state(state: tuple[torch.device, Tensor] | None) -> Iterator[None]:
    """Draw the random numbers that were drawn then, and leave the state as it is now."""
    if state is None:
        yield
        return
    device, numbers = state
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.cuda.set_rng_state(numbers, device)
        else:
            torch.set_rng_state(numbers)
        yield


def _together(found: list[tuple[Product, Tensor]]) -> list[tuple[Product, Tensor]]:
    """Uses of one matrix at successive times as one use with more places."""
    joined: dict[tuple[str, int | None], list[tuple[Product, Tensor]]] = {}
    for product, gradient in found:
        joined.setdefault((product.slot, product.group), []).append((product, gradient))
    result = []
    for (slot, group), uses in joined.items():
        if len(uses) == 1:
            result.append(uses[0])
            continue
        inputs = torch.cat([product.inputs for product, _ in uses], 1)
        outputs = uses[0][0].outputs
        result.append((Product(slot, group, inputs, outputs), torch.cat([g for _, g in uses], 2)))
    return result


def in_precision(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in one precision, whatever autocast made of them."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(in_precision(v, dtype) for v in value)
    return value


def multiply(
    slot: str, group: int | None, inputs: Tensor, weight: Tensor, bias: Tensor | None,
    products: list[Product], times_first: bool,
) -> Tensor:  # fmt: skip
    """W a + b, noted; examples come first in what is noted and as they were in what is returned."""
    rows = inputs.transpose(0, 1) if times_first else inputs
    outputs = F.linear(rows, weight, bias)
    if not outputs.requires_grad:
        outputs.requires_grad_()
    products.append(Product(slot, group, rows.detach(), outputs))
    return outputs.transpose(0, 1) if times_first else outputs
