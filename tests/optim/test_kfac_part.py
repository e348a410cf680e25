"""Factors from part of a large batch: enough of it, unbiased, in turns, resumable."""

import copy

import kfac_oracle as oracle
import pytest
import torch
from torch import nn

from kobai.layers import LayerUse
from kobai.optim import EKFAC, KFAC, KFACConfig, build
from kobai.optim.kfac.plan import plan_blocks
from kobai.optim.kfac.statistics import part_of
from tolerances import assert_close


class Attended(nn.Module):
    """Attention over tokens, then their mean."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


def perceptron():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2, groups=2),
        nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip


def recurrent():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTM(5, 4, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    return Last()


NETWORKS = {
    "perceptron": (perceptron, (5,)),
    "convolutions": (convolutions, (2, 7, 7)),
    "attention": (Attended, (6, 4)),
    "recurrent": (recurrent, (6, 5)),
}


def made(name, examples=12):
    make, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make().double()
        x = torch.randn(examples, *shape).double() + torch.arange(examples).double().view(
            -1, *[1] * len(shape)
        )
        return net, x / x.std(), torch.randint(0, 3, (examples,))


def gathered(net, x, y, part, passes, *, sharing="expand", corrected=False):
    """Factors of every layer (and squares in a fixed basis) of successive passes."""
    plan, bases = plan_blocks(net), None
    if corrected:
        bases = {
            i: tuple(
                torch.linalg.qr(
                    torch.randn(layer.form.groups, n, n, generator=torch.Generator().manual_seed(n))
                )[0].double()
                for n in (layer.form.outputs, layer.form.inputs)
            )
            for i, layer in enumerate(plan.layers)
        }
    observer = oracle.observer(
        net, labels="exact", output_damping=0.0, sharing=sharing, statistics_examples=part,
        bases=bases,
    )  # fmt: skip
    found = []
    for _ in range(passes):
        nn.functional.cross_entropy(net(x), y).backward()
        sums = observer.take().sums
        matrices = [m for i in sorted(sums.moments) for m in sums.moments[i].factors(sums.weight)]
        found.append(matrices + [sums.squares[i] for i in sorted(sums.squares)])
    observer.close()
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_blocks_in_turn_average_to_the_whole_batch(name, sharing):
    net, x, y = made(name)
    (whole,) = gathered(net, x, y, "all", 1, sharing=sharing)
    parts = gathered(net, x, y, 4, 3, sharing=sharing)
    assert len(whole) == 2 * len(plan_blocks(net).layers)
    for i, matrix in enumerate(whole):
        pieces = torch.stack([part[i] for part in parts])
        # Each is of other examples than the next.
        assert (pieces[0] - pieces[1]).norm() > 1e-3 * matrix.norm()
        assert_close(pieces.mean(0), matrix)


@pytest.mark.parametrize("name", ["perceptron", "convolutions"])
def test_second_moments_in_eigenbases_do_so_too(name):
    net, x, y = made(name)
    (whole,) = gathered(net, x, y, "all", 1, corrected=True)
    parts = gathered(net, x, y, 4, 3, corrected=True)
    layers = len(plan_blocks(net).layers)
    assert len(whole) == 3 * layers
    for i in range(2 * layers, 3 * layers):
        mean = torch.stack([part[i] for part in parts]).mean(0)
        assert_close(mean, whole[i])


def test_a_part_is_what_its_examples_alone_give():
    net, x, y = made("perceptron")
    parts = gathered(net, x, y, 4, 3)
    for turn, part in enumerate(parts):
        own = slice(4 * turn, 4 * turn + 4)
        (alone,) = gathered(net, x[own], y[own], "all", 1)
        for one, other in zip(part, alone, strict=True):
            assert_close(one, other)


def test_an_odd_batch_falls_into_blocks_without_overlap():
    net, x, y = made("perceptron", 11)
    parts = gathered(net, x, y, 3, 4)
    # Three blocks; the second round begins with the second of them.
    for turn, own in enumerate([slice(0, 3), slice(3, 7), slice(7, 11), slice(3, 7)]):
        (alone,) = gathered(net, x[own], y[own], "all", 1)
        for one, other in zip(parts[turn], alone, strict=True):
            assert_close(one, other)


def test_batches_by_turns_are_each_seen_whole():
    """Two that alternate and have two blocks each: no block of either is left out."""
    form = plan_blocks(layer(nn.Linear, 1, 1)).layers[0].form
    seen = set()
    for turn in range(8):
        rows = 4.0 * (turn % 2) + torch.arange(4.0).view(4, 1)
        use = LayerUse("", "", None, rows, torch.ones(1, 4, 1))
        chosen, count = part_of(form, [use], 4, 2, turn)
        assert count == 2
        seen |= set(chosen[0].inputs.flatten().tolist())
    assert seen == set(range(8))


def test_passes_between_two_steps_share_their_turn():
    """Two passes over half the batch each are two passes over the same half."""
    net, x, y = made("perceptron", 8)
    halves = gathered(net, x, y, 4, 2)
    observer = oracle.observer(net, labels="exact", output_damping=0.0, statistics_examples=4)
    for half in halves:
        for _ in range(2):
            nn.functional.cross_entropy(net(x), y).backward()
        sums = observer.take().sums
        assert sums.passes == 2
        matrices = [m for i in sorted(sums.moments) for m in sums.moments[i].factors(sums.weight)]
        for one, other in zip(matrices, half, strict=True):
            assert_close(one, other)


def layer(kind, *sizes, **settings):
    with torch.random.fork_rng():
        return kind(*sizes, **settings)


def taken(form_of, inputs, gradients, examples, wanted="auto", reduced=False):
    """How many examples are taken of such a use."""
    form = plan_blocks(form_of).layers[0].form
    use = LayerUse("", "", form_of, inputs, gradients)
    chosen, count = part_of(form, [use], examples, wanted, 0, reduced=reduced)
    assert chosen[0].inputs.shape[0] == chosen[0].gradients.shape[1]
    return count


@pytest.mark.parametrize(
    ("inputs", "outputs", "examples", "enough"),
    [(10, 10, 1024, 256), (340, 10, 1023, 341), (10, 400, 800, 400), (2000, 10, 1000, 1000),
     (10, 10, 300, 300)],
)  # fmt: skip
def test_rows_are_as_many_as_lines_of_the_larger_factor(inputs, outputs, examples, enough):
    linear = layer(nn.Linear, inputs, outputs)
    x, g = torch.ones(examples, inputs), torch.ones(1, examples, outputs)
    assert taken(linear, x, g, examples) == enough
    assert taken(linear, x, g, examples, "all") == examples
    assert taken(linear, x, g, examples, examples // 2) == examples // 2


def test_places_of_an_example_are_rows_but_examples_are_64_at_least():
    conv = layer(nn.Conv2d, 2, 3, 3, padding=1)
    x, g = torch.ones(512, 2, 8, 8), torch.ones(1, 512, 3, 8, 8)
    assert taken(conv, x, g, 512) == 64
    assert taken(conv, x, g, 512, reduced=True) == 256
    wide = layer(nn.Linear, 300, 400)
    assert taken(wide, torch.ones(600, 2, 300), torch.ones(1, 600, 2, 400), 600) == 200


def test_what_does_not_count_examples_first_is_taken_whole():
    linear = layer(nn.Linear, 3, 3)
    time_first = torch.ones(7, 400, 3), torch.ones(1, 7, 400, 3)
    assert taken(linear, *time_first, 400) == 400
    rows = torch.ones(768, 3), torch.ones(1, 768, 3)  # two of an example, one after the other
    assert taken(linear, *rows, 384) == 128
    # Channels, not examples, come first.
    single = layer(nn.Conv1d, 512, 512, 3, padding=1, groups=512)
    assert taken(single, torch.ones(512, 9), torch.ones(1, 512, 9), 512) == 512
    table = layer(nn.Embedding, 5, 3)
    assert taken(table, torch.zeros(400, 9).long(), torch.ones(1, 400, 9, 3), 400) == 400


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_a_small_batch_is_whole_by_default(kind):
    net, x, y = made("perceptron", 256)
    ends = []
    for part in ("auto", "all"):
        own = copy.deepcopy(net)
        optimizer = kind(own, statistics_examples=part)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(own(x), y).backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in own.parameters()]))
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("extra", [0, 1])
def test_training_resumes_at_the_same_block(kind, extra):
    net, x, y = made("convolutions", 200)

    def train(own, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(own(x), y).backward()
            optimizer.step()

    optimizer = kind(net, lr=0.03, damping=0.03, statistics_every=1, inverse_every=1)
    train(net, optimizer, 3 + extra)
    other = copy.deepcopy(net)
    resumed = kind(other, lr=0.03, damping=0.03, statistics_every=1, inverse_every=1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(net, optimizer, 4)
    train(other, resumed, 4)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("wrong", [0, -3])
def test_what_is_no_number_of_examples_is_refused(wrong):
    net, _, _ = made("perceptron")
    with pytest.raises(ValueError, match=r"number of examples .* 'auto' or 'all'"):
        KFAC(net, statistics_examples=wrong)
    with pytest.raises(ValueError, match=r"number of examples .* 'auto' or 'all'"):
        KFACConfig(statistics_examples=wrong)


def test_the_name_passes_it_on():
    net, _, _ = made("perceptron")
    optimizer = build("ekfac", net, config=KFACConfig(statistics_examples=9))
    assert optimizer.statistics_examples == 9
