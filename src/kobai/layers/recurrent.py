"""Recurrent layers and their cells, unrolled so that every product shows."""

import dataclasses
import re
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kobai.layers.composite import Product, in_precision, multiply
from kobai.layers.form import Slot, slot_of
from kobai.layers.interface import CompositeKind, unchanged


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Recurrent(CompositeKind):
    """RNN, LSTM and GRU over a sequence.

    Attributes:
        types: Classes.
    """

    name = "recurrent"
    types: tuple[type[nn.Module], ...] = (nn.RNN, nn.LSTM, nn.GRU)
    one_step = False
    unit_families = re.compile(r"(?:weight|bias)_(?:ih|hh|hr)(_l\d+(?:_reverse)?)")

    def matches(self, module: nn.Module) -> bool:
        """Tell whether it is of one of the types, with their `forward`."""
        return unchanged(module, self.types)

    def slots(self, module: Any) -> tuple[Slot, ...]:
        """Two for each direction of each layer, three with projections."""
        found = []
        for level in range(module.num_layers):
            for end in ("", "_reverse") if module.bidirectional else ("",):
                suffix = f"_l{level}{end}"
                for name in ("ih", "hh") + (("hr",) if module.proj_size else ()):
                    weight = f"weight_{name}{suffix}"
                    found.append(
                        slot_of(module, weight, weight, f"bias_{name}{suffix}", 1,
                              *getattr(module, weight).shape)
                    )  # fmt: skip
        return tuple(found)

    def replay(
        self, module: Any, parameters: dict[str, Tensor], arguments: dict[str, Any]
    ) -> tuple[Any, list[Product]]:
        """See `CompositeKind.replay`; torch gives all states, then the last."""
        p, dtype = parameters, parameters["weight_ih_l0"].dtype
        x, start = (in_precision(arguments[name], dtype) for name in ("input", "hx"))
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
                from_input = multiply(
                    f"weight_ih{suffix}", None, x, p[f"weight_ih{suffix}"],
                    p.get(f"bias_ih{suffix}"), products, True,
                )  # fmt: skip
                seen: list[Tensor] = []
                order = range(x.shape[0])
                for t in reversed(order) if end else order:
                    from_state = multiply(
                        f"weight_hh{suffix}", None, state.unsqueeze(1), p[f"weight_hh{suffix}"],
                        p.get(f"bias_hh{suffix}"), products, False,
                    ).squeeze(1)  # fmt: skip
                    state, memory = _step(module, from_input[t], from_state, state, memory)
                    if module.proj_size:
                        state = multiply(
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


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentCell(CompositeKind):
    """One step of an RNN, LSTM or GRU.

    Attributes:
        types: Classes.
    """

    name = "recurrent"
    types: tuple[type[nn.Module], ...] = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)
    one_step = True

    def matches(self, module: nn.Module) -> bool:
        """Tell whether it is of one of the types, with their `forward`."""
        return unchanged(module, self.types)

    def slots(self, module: Any) -> tuple[Slot, ...]:
        """The matrix that multiplies the input, and the one that multiplies the state."""
        return tuple(
            slot_of(module, f"weight_{end}", f"weight_{end}", f"bias_{end}", 1,
                    *getattr(module, f"weight_{end}").shape)
            for end in ("ih", "hh")
        )  # fmt: skip

    def replay(
        self, module: Any, parameters: dict[str, Tensor], arguments: dict[str, Any]
    ) -> tuple[Any, list[Product]]:
        """See `CompositeKind.replay`."""
        p, dtype = parameters, parameters["weight_ih"].dtype
        x, start = (in_precision(arguments[name], dtype) for name in ("input", "hx"))
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
            multiply(f"weight_{end}", None, rows.unsqueeze(1), p[f"weight_{end}"],
                     p.get(f"bias_{end}"), products, False).squeeze(1)
            for end, rows in (("ih", x), ("hh", state))
        ]  # fmt: skip
        state, memory = _step(module, ends[0], ends[1], state, memory)
        result = (state,) if memory is None else (state, memory)
        if single:
            result = tuple(r.squeeze(0) for r in result)
        return result, products


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
