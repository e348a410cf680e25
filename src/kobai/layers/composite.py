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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from kobai.layers.form import CELLS


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
        parameters: Its parameters as they were.
        arguments: Positional and keyword arguments by the names of its forward method, detached.
        edges: Places of its output tensors in the graph.
        positions: Which of the flattened outputs these are.
        size: Number of entries of the outputs.
        random: State of the random numbers before the call, where it draws some.
    """

    layer: str
    module: Any
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
            outputs, products = _replay(self.module)(self.module, self.parameters, self.arguments)
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
    model: nn.Module, wanted: Callable[[nn.Module], bool], record: list[CompositeCall]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Note the calls of composite layers for as long as the handles are kept.

    Args:
        model: The model to watch.
        wanted: Says which submodules; they must be composite.
        record: Where the calls go.
    """
    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in model.named_modules():
        if wanted(module):
            handles += _watch(name, module, record)
    return handles


def _watch(
    name: str, module: nn.Module, record: list[CompositeCall]
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
        output = _owned(output, always=isinstance(module, CELLS))
        flat = _tensors(output)
        chosen = [i for i, t in enumerate(flat) if t.requires_grad]
        record.append(
            CompositeCall(
                layer=name,
                module=module,
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


Replay = Callable[[Any, dict[str, Tensor], dict[str, Any]], tuple[Any, list[Product]]]


def _replay(module: nn.Module) -> Replay:
    if isinstance(module, nn.MultiheadAttention):
        return _attention
    return _cell if isinstance(module, CELLS) else _recurrence


def _typed(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors in one precision, whatever autocast made of them."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_typed(v, dtype) for v in value)
    return value


def _linear(
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


def _attention(
    module: nn.MultiheadAttention, p: dict[str, Tensor], arguments: dict[str, Any]
) -> tuple[Any, list[Product]]:
    """Multi-head attention between its projections is torch's own, with identities in their place.

    So every mask and option means what it means there.
    """
    dtype = p["out_proj.weight"].dtype
    given = {key: _typed(value, dtype) for key, value in arguments.items()}
    parts = [given[name] for name in ("query", "key", "value")]
    single = parts[0].ndim == 2
    if single:
        parts = [part.unsqueeze(1) for part in parts]
    elif module.batch_first:
        parts = [part.transpose(0, 1) for part in parts]
    width = module.embed_dim
    joint = module._qkv_same_embed_dim
    weights = p["in_proj_weight"].chunk(3) if joint else [
        p[name] for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    ]  # fmt: skip
    bias = p.get("in_proj_bias")
    biases = [None] * 3 if bias is None else list(bias.chunk(3))
    products: list[Product] = []
    q, k, v = (
        _linear("in_proj" if joint else name, i if joint else None, part, w, b, products, True)
        for i, (name, part, w, b) in enumerate(
            zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), parts, weights, biases,
                strict=True)
        )
    )  # fmt: skip
    identity = torch.eye(width, dtype=dtype, device=q.device)
    mixed, shares = F.multi_head_attention_forward(
        q, k, v, width, module.num_heads, None, None, p.get("bias_k"), p.get("bias_v"),
        module.add_zero_attn, module.dropout, identity, None, training=module.training,
        key_padding_mask=_batch_mask(given["key_padding_mask"], single),
        need_weights=given["need_weights"], attn_mask=given["attn_mask"],
        use_separate_proj_weight=True, q_proj_weight=identity, k_proj_weight=identity,
        v_proj_weight=identity, average_attn_weights=given["average_attn_weights"],
        is_causal=given["is_causal"],
    )  # fmt: skip
    out = _linear(
        "out_proj", None, mixed, p["out_proj.weight"], p.get("out_proj.bias"), products, True
    )
    if single:
        out = out.squeeze(1)
        shares = None if shares is None else shares.squeeze(0)
    elif module.batch_first:
        out = out.transpose(0, 1)
    return (out, shares), products


def _batch_mask(mask: Tensor | None, single: bool) -> Tensor | None:
    return mask.unsqueeze(0) if single and mask is not None else mask


def _step(
    module: nn.Module, from_input: Tensor, from_state: Tensor, state: Tensor, memory: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """New state and memory of a cell from its two products."""
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        i, f, g, o = (from_input + from_state).chunk(4, -1)
        assert memory is not None
        memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(memory), memory
    if isinstance(module, nn.GRU | nn.GRUCell):
        r1, z1, n1 = from_input.chunk(3, -1)
        r2, z2, n2 = from_state.chunk(3, -1)
        reset, keep = torch.sigmoid(r1 + r2), torch.sigmoid(z1 + z2)
        new = torch.tanh(n1 + reset * n2)
        return (1 - keep) * new + keep * state, None
    relu = getattr(module, "nonlinearity", "tanh") == "relu"
    total = from_input + from_state
    return (torch.relu(total) if relu else torch.tanh(total)), None


def _cell(
    module: Any, p: dict[str, Tensor], arguments: dict[str, Any]
) -> tuple[Any, list[Product]]:
    dtype = p["weight_ih"].dtype
    x, start = (_typed(arguments[name], dtype) for name in ("input", "hx"))
    single = x.ndim == 1
    if single:
        x = x.unsqueeze(0)
        start = tuple(s.unsqueeze(0) for s in start) if isinstance(start, tuple) else (
            None if start is None else start.unsqueeze(0)
        )  # fmt: skip
    zeros = x.new_zeros(x.shape[0], module.hidden_size)
    state, memory = start if isinstance(start, tuple) else (start, None)
    state = zeros if state is None else state
    memory = zeros if memory is None else memory
    products: list[Product] = []
    ends = [
        _linear(f"weight_{end}", None, rows.unsqueeze(1), p[f"weight_{end}"], p.get(f"bias_{end}"),
                products, False).squeeze(1)
        for end, rows in (("ih", x), ("hh", state))
    ]  # fmt: skip
    state, memory = _step(module, ends[0], ends[1], state, memory)
    result = (state,) if memory is None else (state, memory)
    if single:
        result = tuple(r.squeeze(0) for r in result)
    return result, products


def _recurrence(
    module: Any, p: dict[str, Tensor], arguments: dict[str, Any]
) -> tuple[Any, list[Product]]:
    """The unrolled layers; outputs in the order torch gives them: all states, then the last."""
    dtype = p["weight_ih_l0"].dtype
    x, start = (_typed(arguments[name], dtype) for name in ("input", "hx"))
    single = x.ndim == 2
    if single:
        x = x.unsqueeze(1)
    elif module.batch_first:
        x = x.transpose(0, 1)
    with_memory = isinstance(module, nn.LSTM)
    states, memories = start if isinstance(start, tuple) else (start, None)
    if single and states is not None:
        states = states.unsqueeze(1)
        memories = None if memories is None else memories.unsqueeze(1)
    ways = ("", "_reverse") if module.bidirectional else ("",)
    last_states, last_memories = [], []
    products: list[Product] = []
    for level in range(module.num_layers):
        if level and module.dropout:
            x = F.dropout(x, module.dropout, module.training)
        sides = []
        for way, end in enumerate(ways):
            suffix, number = f"_l{level}{end}", level * len(ways) + way
            width = module.proj_size or module.hidden_size
            state = x.new_zeros(x.shape[1], width) if states is None else states[number]
            memory = x.new_zeros(x.shape[1], module.hidden_size) if memories is None else (
                memories[number]
            )  # fmt: skip
            from_input = _linear(
                f"weight_ih{suffix}", None, x, p[f"weight_ih{suffix}"], p.get(f"bias_ih{suffix}"),
                products, True,
            )  # fmt: skip
            seen: list[Tensor] = []
            order = range(x.shape[0])
            for t in reversed(order) if end else order:
                from_state = _linear(
                    f"weight_hh{suffix}", None, state.unsqueeze(1), p[f"weight_hh{suffix}"],
                    p.get(f"bias_hh{suffix}"), products, False,
                ).squeeze(1)  # fmt: skip
                state, memory = _step(module, from_input[t], from_state, state, memory)
                if module.proj_size:
                    state = _linear(
                        f"weight_hr{suffix}", None, state.unsqueeze(1), p[f"weight_hr{suffix}"],
                        None, products, False,
                    ).squeeze(1)  # fmt: skip
                seen.append(state)
            sides.append(torch.stack(seen[::-1] if end else seen))
            last_states.append(state)
            last_memories.append(memory)
        x = torch.cat(sides, -1)
    ends = torch.stack(last_states)
    memory_ends = torch.stack(last_memories) if with_memory else None
    if single:
        x, ends = x.squeeze(1), ends.squeeze(1)
        memory_ends = None if memory_ends is None else memory_ends.squeeze(1)
    elif module.batch_first:
        x = x.transpose(0, 1)
    return (x, (ends, memory_ends) if with_memory else ends), products
