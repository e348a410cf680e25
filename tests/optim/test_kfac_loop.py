"""K-FAC in other people's loops: nothing changes, nothing leaks, nothing is left behind."""

import copy
import gc
import io
import itertools
import pickle
import weakref

import kfac_oracle as oracle
import pytest
import torch
from torch import nn

import cases
from kobai.curvature import Fisher, Hessian
from kobai.optim import KFAC
from kobai.problem import Batch, Categorical, EmpiricalRisk


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)).double()
        x, y = torch.randn(8, 5).double(), torch.randint(0, 3, (8,))
    return net, x, y


def loop(net, x, y, optimizer, steps=5, loss_scale=1.0):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y) * loss_scale
        loss.backward()
        for p in net.parameters():
            p.grad /= loss_scale
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_the_statistics_pass_leaves_gradients_as_they_are():
    net, x, y = network()
    nn.functional.cross_entropy(net(x), y).backward()
    plain = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    observer = oracle.observer(net)
    nn.functional.cross_entropy(net(x), y).backward()
    assert observer.take().sums.passes == 1
    for p, expected in zip(net.parameters(), plain, strict=True):
        assert torch.equal(p.grad, expected)


def test_the_scale_of_the_loss_never_reaches_the_factors():
    """As under a gradient scaler: scaled backward, unscaled gradients before the step."""
    runs = []
    for scale in (1.0, 2.0**16):
        net, x, y = network()
        runs.append(loop(net, x, y, KFAC(net), loss_scale=scale))
    assert torch.equal(*runs)


def test_a_gradient_scaler_drives_it():
    net, x, y = network()
    optimizer, scaler = KFAC(net), torch.amp.GradScaler("cpu")
    for _ in range(5):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(net(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    twin, x, y = network()
    expected = loop(twin, x, y, KFAC(twin))
    assert torch.equal(torch.cat([p.detach().flatten() for p in net.parameters()]), expected)


def test_evaluation_in_between_changes_nothing():
    net, x, y = network()
    expected = loop(net, x, y, KFAC(net))
    net, x, y = network()
    optimizer = KFAC(net)
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        with torch.no_grad():
            net(x[:3])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            net(x)
        net(x)  # gradients on, but no backward pass
    assert torch.equal(torch.cat([p.detach().flatten() for p in net.parameters()]), expected)


@pytest.mark.parametrize("when", ["before the backward pass", "before the step", "after the step"])
def test_curvature_in_between_changes_nothing(when):
    """Matrices of the model, asked anywhere in the loop, are not taken for its passes."""

    def run(asks: bool):
        net, x, y = network()
        risk = EmpiricalRisk(net, Categorical(), (Batch(x, y),))

        def ask(now: str):
            if asks and now == when:
                ones = torch.ones(risk.theta().numel(), dtype=torch.float64)
                for matrix in (Hessian(risk), Fisher(risk, structure="kronecker")):
                    matrix @ ones
                risk.grad(risk.theta())

        optimizer = KFAC(net)
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            ask("before the backward pass")
            loss.backward()
            ask("before the step")
            optimizer.step()
            ask("after the step")
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(run(True), run(False))


def test_accumulated_gradients_have_the_statistics_of_the_joined_batch():
    net, x, y = network()
    whole = KFAC(net, labels="exact")
    nn.functional.cross_entropy(net(x), y).backward()
    whole.step()
    twin, x, y = network()
    parts = KFAC(twin, labels="exact")
    for piece in (slice(0, 4), slice(4, 8)):
        (nn.functional.cross_entropy(twin(x[piece]), y[piece]) / 2).backward()
    parts.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_of_two_forward_passes_the_last_counts():
    net, x, y = network()
    observer = oracle.observer(net)
    first, second = net(x[:4]), net(x[4:])
    (
        nn.functional.cross_entropy(first, y[:4]) + nn.functional.cross_entropy(second, y[4:])
    ).backward()
    sums = observer.take().sums
    assert sums.passes == 1
    assert sums.moments[0].rows == 4


def test_statistics_come_when_they_are_due():
    net, x, y = network()
    optimizer = KFAC(net, statistics_every=10, inverse_every=40)
    seen = []
    for _ in range(130):
        loop(net, x, y, optimizer, steps=1)
        seen.append((optimizer.diagnostics()["statistics"], optimizer.diagnostics()["inversions"]))
    statistics = [i for i in range(130) if i == 0 or seen[i][0] > seen[i - 1][0]]
    gaps = [b - a for a, b in itertools.pairwise(statistics)]
    assert gaps[:10] == [1] * 10
    assert gaps == sorted(gaps)
    assert gaps[-1] == 10
    inversions = [i for i in range(130) if i == 0 or seen[i][1] > seen[i - 1][1]]
    assert inversions[:4] == [0, 1, 2, 3]
    assert max(b - a for a, b in itertools.pairwise(inversions)) <= 50


class Saved:
    """A saved activation that can be watched."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_no_graph_outlives_the_next_step():
    """Neither of an ordinary pass, nor of one without a backward pass; without the collector."""
    net, x, y = network()
    net[1] = nn.Softplus()  # saves its input; torch itself leaks results saved through such hooks
    optimizer = KFAC(net)
    saved = []

    def pack(tensor):
        token = Saved(tensor)
        saved.append(weakref.ref(token))
        return token

    gc.disable()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda token: token.tensor):
            net(x)  # abandoned
            for _ in range(2):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(x), y)
                loss.backward()
                optimizer.step()
            net(x)  # abandoned
            optimizer.step()
        del loss
        assert saved
        assert not any(token() for token in saved)
    finally:
        gc.enable()


def test_an_optimizer_that_is_gone_leaves_the_model_clean():
    net, x, y = network()
    optimizer = KFAC(net)
    loop(net, x, y, optimizer, steps=2)
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


def test_close_takes_the_hooks_off():
    net, x, y = network()
    optimizer = KFAC(net)
    loop(net, x, y, optimizer, steps=2)
    optimizer.close()
    assert not net._forward_hooks
    assert not any(module._forward_hooks for module in net.modules())


def test_copies_and_pickles_of_the_model_are_not_watched():
    net, x, y = network()
    observer = oracle.observer(net)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        nn.functional.cross_entropy(other(x), y).backward()
        assert observer.take().sums.passes == 0


def test_a_pickled_optimizer_goes_on():
    net, x, y = network()
    optimizer = KFAC(net)
    loop(net, x, y, optimizer, steps=3)
    other_net, other = pickle.loads(pickle.dumps((net, optimizer)))
    expected = loop(net, x, y, optimizer, steps=3)
    assert torch.equal(loop(other_net, x, y, other, steps=3), expected)


def test_a_failed_forward_pass_is_forgotten():
    net, x, y = network()
    optimizer = KFAC(net)
    with pytest.raises(RuntimeError, match="shapes"):
        net(x[:, :2])
    assert not any(module._forward_hooks for module in net if module is not net)
    loop(net, x, y, optimizer, steps=2)
    assert optimizer.diagnostics()["statistics"] == 2


def test_gradients_without_statistics_are_an_error():
    net, x, y = network()
    optimizer = KFAC(net)
    nn.functional.cross_entropy(net.forward(x), y).backward()
    with pytest.raises(RuntimeError, match="call the model itself"):
        optimizer.step()


def test_outputs_changed_in_place_are_an_error():
    net, x, y = network()
    optimizer = KFAC(net)
    outputs = net(x)
    outputs.div_(2.0)
    with pytest.raises(RuntimeError, match="in place"):
        nn.functional.cross_entropy(outputs, y).backward()
    optimizer.close()


def test_a_step_without_gradients_does_nothing():
    net, _, _ = network()
    before = [p.clone() for p in net.parameters()]
    optimizer = KFAC(net)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_the_saved_state_is_plain_and_belongs_to_the_optimizer():
    net, x, y = network()
    optimizer = KFAC(net, generator=torch.Generator().manual_seed(3))
    loop(net, x, y, optimizer, steps=3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    twin, x, y = network()
    twin.load_state_dict(net.state_dict())
    fresh = KFAC(twin)
    fresh.load_state_dict(state)
    assert fresh.diagnostics() == optimizer.diagnostics()
    assert torch.equal(loop(net, x, y, optimizer), loop(twin, x, y, fresh))
    with pytest.raises(ValueError, match="not saved by KFAC"):
        fresh.load_state_dict(torch.optim.SGD(twin.parameters(), lr=0.1).state_dict())


def test_the_state_of_another_model_is_refused():
    net, x, y = network()
    optimizer = KFAC(net)
    loop(net, x, y, optimizer, steps=1)
    with torch.random.fork_rng():
        other = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    with pytest.raises(ValueError, match="another model"):
        KFAC(other).load_state_dict(optimizer.state_dict())


def test_a_model_in_another_precision_keeps_its_statistics():
    net, x, y = network()
    optimizer = KFAC(net)
    loop(net, x, y, optimizer, steps=3)
    net.float()
    loop(net, x.float(), y, optimizer, steps=3)
    assert optimizer.diagnostics()["statistics"] == 6
    saved = oracle.saved(optimizer).values()
    assert all(entry["momentum_buffer"].dtype == torch.float32 for entry in saved)


def test_unfrozen_parameters_can_be_added():
    net, x, y = network()
    net[0].weight.requires_grad_(False)
    net[0].bias.requires_grad_(False)
    optimizer = KFAC(net)
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    before = net[0].weight.clone()
    net[0].weight.requires_grad_(True)
    net[0].bias.requires_grad_(True)
    optimizer.add_param_group({"params": list(net[0].parameters()), "lr": 0.01})
    loop(net, x, y, optimizer, steps=2)
    assert not torch.equal(before, net[0].weight)
    assert [row.block for row in optimizer.coverage()] == ["kronecker"] * 2
    with pytest.raises(ValueError, match="of the model"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_mixed_precision_parameters_train():
    net, x, y = network()
    net = net.bfloat16()
    optimizer = KFAC(net)
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x.bfloat16()).float(), y)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1.0
    saved = oracle.saved(optimizer).values()
    assert all(entry["momentum_buffer"].dtype == torch.float32 for entry in saved)


def test_language_model_outputs_and_keyword_inputs():
    problem = cases.problem("keywords")
    optimizer = KFAC(problem.model, Categorical())
    optimizer.step(problem.objective())
    assert optimizer.diagnostics()["statistics"] == 1
