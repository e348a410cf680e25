"""K-FAC blocks with exact traces, against the dense Fisher matrix of torch.func alone."""

import pytest
import torch
from torch import nn

import cases
from kobai.curvature import Fisher
from kobai.curvature.blocks import block_traces
from kobai.curvature.blocks.factor_sums import FactorSums
from kobai.curvature.structures import KroneckerStructure
from kobai.layers import LayerUse, slots
from kobai.problem import Problem
from tolerances import assert_close


def exact(objective):
    """JᵀHJ/W by torch alone, row by row."""
    theta = objective.theta()
    total = 0
    for batch in objective.batches:

        def outputs(t, batch=batch):
            return objective.forward(t, batch).flatten(1)

        jacobian = torch.autograd.functional.jacobian(outputs, theta)
        f = objective.forward(theta, batch).detach()
        columns = []
        for k in range(f[0].numel()):
            unit = torch.zeros_like(f).flatten(1)
            unit[:, k] = 1
            hessian = objective.likelihood.hvp(f, batch.targets, unit.view_as(f))
            columns.append(hessian.flatten(1))
        h = torch.stack(columns, 2)
        total = total + torch.einsum("ncp,ncd,ndq->pq", jacobian, h, jacobian)
    return total / objective.weight


def block_indices(objective, *names):
    own = {b.name: b.indices.flatten() for b in objective.space.blocks("parameter")}
    return torch.cat([own[name] for name in names if name in own])


SHARED = {
    "cnn": [("0.weight", "0.bias")],
    "segmentation": [("0.weight", "0.bias")],
    "lstm": [
        ("recurrent.weight_ih_l0", "recurrent.bias_ih_l0"),
        ("recurrent.weight_hh_l0", "recurrent.bias_hh_l0"),
    ],
    "transformer": [
        ("layer.self_attn.out_proj.weight", "layer.self_attn.out_proj.bias"),
        ("layer.linear1.weight", "layer.linear1.bias"),
        ("layer.linear2.weight", "layer.linear2.bias"),
    ],
}


@pytest.mark.parametrize("name", SHARED)
def test_traces_of_layers_with_places_are_exact(name):
    objective = cases.objective(name)
    truth = exact(objective)
    found = {
        sharing: Fisher(objective, KroneckerStructure(sharing)).dense()
        for sharing in ("trace", "expand")
    }
    known = dict(objective.space.module.named_parameters())
    for names in SHARED[name]:
        assert set(names) <= set(known), sorted(known)
        index = block_indices(objective, *names)
        own, wrong, wanted = (
            m[index[:, None], index] for m in (found["trace"], found["expand"], truth)
        )
        assert_close(own.trace(), wanted.trace())
        # The same matrix but for its size.
        assert_close(own * wrong.trace() / wanted.trace(), wrong)
        assert abs(float(wrong.trace() / wanted.trace()) - 1) > 1e-3


def test_groups_of_attention_have_traces_of_their_own():
    objective = cases.objective("transformer")
    truth = exact(objective)
    found = Fisher(objective, KroneckerStructure("trace")).dense()
    weight, bias = (
        block_indices(objective, f"layer.self_attn.in_proj_{kind}") for kind in ("weight", "bias")
    )
    for rows, ends in zip(weight.chunk(3), bias.chunk(3), strict=True):
        index = torch.cat([rows, ends])
        assert_close(found[index, index].sum(), truth[index, index].sum())


@pytest.mark.parametrize("name", ["mlp", "tied"])
def test_nothing_changes_without_places(name):
    objective = cases.objective(name)
    one, other = (
        Fisher(objective, KroneckerStructure(sharing)).dense() for sharing in ("trace", "expand")
    )
    assert torch.equal(one, other)


def test_a_mean_over_tokens_has_the_block_of_as_many_tokens():
    """One token repeated T times: its layer's block is T times what independence would give."""
    with torch.random.fork_rng():
        torch.manual_seed(0)

        class Mean(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(3, 2)

            def forward(self, x):
                return self.layer(x).mean(1)

        model = Mean().double()
        x, y = torch.randn(8, 1, 3).double(), torch.randn(8, 2).double()
    objective = Problem(model, "gaussian", train=(x.expand(8, 5, 3).clone(), y)).objective()
    single = Problem(model, "gaussian", train=(x, y)).objective()
    own = Fisher(objective, KroneckerStructure("trace")).dense()
    assert_close(own, exact(single))
    assert_close(Fisher(objective, KroneckerStructure("expand")).dense() * 5, own)


def uses_of(places, width, height, examples=6, columns=2):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(examples, places, width, generator=generator).double()
    g = torch.randn(columns, examples, places, height, generator=generator).double()
    return [LayerUse("", "", None, a, g)], a, g


@pytest.mark.parametrize("places", [2, 40])
@pytest.mark.parametrize("workspace", [1, 2**24])
def test_both_ways_and_pieces_of_any_size_agree(places, workspace, monkeypatch):
    monkeypatch.setattr(block_traces, "_WORKSPACE", workspace)
    linear = nn.utils.skip_init(nn.Linear, 5, 4, bias=False)
    uses, a, g = uses_of(places, 5, 4)
    found = block_traces.block_traces(slots(linear)[0].form, uses, 6, torch.float64)
    gradients = torch.einsum("qntm,ntk->qnmk", g, a)
    assert_close(found[0], gradients.square().sum().unsqueeze(0))
    independent = a.square().sum() / (6 * places) * g.square().sum()
    wanted = gradients.square().sum() / independent
    assert_close(block_traces.trace_ratios(found), wanted.unsqueeze(0))
    part = block_traces.block_traces(slots(linear)[0].form, uses, 6, torch.float64, 4)
    assert_close(part[0], gradients[:, :4].square().sum().unsqueeze(0))


def test_batches_with_and_without_places_together_are_taken_as_independent():
    linear = nn.utils.skip_init(nn.Linear, 5, 4, bias=False)
    form = slots(linear)[0].form
    sums, plain = FactorSums(), FactorSums()
    for places in (3, 1, 3):
        uses, _, _ = uses_of(places, 5, 4)
        sums.add(form, uses, examples=6, sharing="trace", dtype=torch.float64)
        plain.add(form, uses, examples=6, sharing="expand", dtype=torch.float64)
    assert sums.traces is None
    for one, other in zip(sums.factors(18), plain.factors(18), strict=True):
        assert torch.equal(one, other)


def test_vanishing_gradients_leave_the_size_alone():
    linear = nn.utils.skip_init(nn.Linear, 5, 4, bias=False)
    uses, _, _ = uses_of(3, 5, 4)
    uses[0].gradients.zero_()
    sums = FactorSums()
    sums.add(slots(linear)[0].form, uses, examples=6, sharing="trace", dtype=torch.float64)
    inputs, outputs = sums.factors(6)
    assert torch.isfinite(inputs).all()
    assert not outputs.any()
