"""Attention and recurrent layers: every matrix inside them, held against dense Jacobians."""

import pytest
import torch
from test_curvature_rows import assert_blocks_exact
from torch import nn

from kobai import Problem
from kobai.curvature import Fisher


class Attention(nn.Module):
    """Attention of some tokens to others, and what a caller may do with its outputs."""

    def __init__(self, call, keys=None, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **settings)
        self.call, self.keys = call, keys

    def forward(self, x):
        return self.call(self.attention, x, self.keys).flatten(1)


MASK = torch.tensor([[False, True, False], [False, False, True], [True, False, False]])

ATTENTION = {
    "self": (lambda a, x, k: a(x, x, x)[0], {"batch_first": True}),
    "weights": (lambda a, x, k: a(x, x, x)[1], {"batch_first": True}),
    "in place": (lambda a, x, k: a(x, x, x)[0].mul_(2.0).relu_(), {"batch_first": True}),
    "times first": (lambda a, x, k: a(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), {}),
    "no bias": (lambda a, x, k: a(x, x, x)[0], {"batch_first": True, "bias": False}),
    "masks": (
        lambda a, x, k: a(
            x, x, value=x, attn_mask=MASK, need_weights=False,
            key_padding_mask=torch.tensor([[False, False, True]]).expand(len(x), 3),
        )[0],
        {"batch_first": True},
    ),
    "causal": (
        lambda a, x, k: a(
            x, x, x, need_weights=False, is_causal=True,
            attn_mask=nn.Transformer.generate_square_subsequent_mask(3, dtype=x.dtype),
        )[0],
        {"batch_first": True},
    ),
    "extra keys": (
        lambda a, x, k: a(x, x, x)[0],
        {"batch_first": True, "add_bias_kv": True, "add_zero_attn": True},
    ),
    "crossed": (
        lambda a, x, k: a(x, k[: len(x)], k[: len(x)])[0],
        {"batch_first": True, "keys": (5, 4)},
    ),
    "other widths": (
        lambda a, x, k: a(x, k[: len(x), :, :3], k[: len(x), :, 1:])[0],
        {"batch_first": True, "keys": (5, 4), "kdim": 3, "vdim": 3},
    ),
}  # fmt: skip


class Recurrence(nn.Module):
    """A recurrent layer of any kind; every output is used."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.layer = kind(3, 2, **settings)

    def forward(self, x):
        if not self.layer.batch_first:
            x = x.transpose(0, 1)
        outputs, last = self.layer(x)
        if not self.layer.batch_first:
            outputs = outputs.transpose(0, 1)
        last = torch.cat(last, -1) if isinstance(last, tuple) else last
        return torch.cat([outputs.flatten(1), last.transpose(0, 1).flatten(1)], 1)


class Cells(nn.Module):
    """A cell stepped by hand."""

    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(4, 2), nn.Linear(2, 2)

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


RECURRENT = {
    "lstm": lambda: Recurrence(nn.LSTM, batch_first=True),
    "lstm deep": lambda: Recurrence(nn.LSTM, num_layers=2, bidirectional=True),
    "lstm projected": lambda: Recurrence(nn.LSTM, proj_size=1, batch_first=True),
    "gru": lambda: Recurrence(nn.GRU, bias=False, bidirectional=True),
    "rnn": lambda: Recurrence(nn.RNN, nonlinearity="relu", batch_first=True, num_layers=2),
    "lstm cell": lambda: Cells(nn.LSTMCell),
    "gru cell": lambda: Cells(nn.GRUCell),
    "rnn cell": lambda: Cells(nn.RNNCell),
}


def made(make, shape, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        x = torch.randn(4, *shape).double()
        y = torch.randn(4, model(x).shape[1]).double()
    return Problem(model, "gaussian", train=(x, y))


def kinds(objective):
    source = Fisher(objective, "kronecker").source
    return {name: part.kind for part in source.parts for name in part.parameters}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_captured_and_exact(name):
    call, settings = ATTENTION[name]
    settings = dict(settings)
    shape = settings.pop("keys", None)
    keys = None
    if shape is not None:
        keys = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)).double()
        keys = keys[:1].expand(4, *shape)  # chunks and single examples see the same ones
    objective = made(lambda: Attention(call, keys, **settings), (3, 4)).objective(chunk=3)
    found = kinds(objective)
    expected = {n for n in found if n.rpartition(".")[2] in ("bias_k", "bias_v")}
    if name == "other widths":
        expected |= {"attention.in_proj_bias"}
    assert {n for n, kind in found.items() if kind != "matrix"} == expected
    assert_blocks_exact(objective)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_captured_and_exact(name):
    shape = (3, 4) if "cell" in name else (3, 3)
    objective = made(RECURRENT[name], shape).objective(chunk=3)
    assert set(kinds(objective).values()) == {"matrix"}
    assert_blocks_exact(objective)


def test_packed_sequences_are_refused():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(3, 2, batch_first=True)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, [3] * len(x), batch_first=True)
            return self.layer(packed)[1][0][-1]

    objective = made(Packed, (3, 3)).objective()
    with pytest.raises(TypeError, match="pad the sequences"):
        Fisher(objective, "kronecker")
