"""Layers used several times, at places or by several modules, against explicit matrices."""

import kfac_oracle as oracle
import torch
from torch import nn

import cases
from kobai.curvature.blocks.kronecker import KroneckerFactors
from kobai.optim import KFAC
from kobai.problem import Problem
from tolerances import assert_close


def batch_of(problem):
    (batch,) = problem.objective().batches
    return batch


def block(optimizer, name):
    """The block of a layer, written out."""
    entry = oracle.saved(optimizer)[name]
    factors = KroneckerFactors(inputs=entry["input_factor"], outputs=entry["output_factor"])
    return factors.dense()[0]


def test_layers_called_twice_add_their_uses_up():
    """Two uses of a linear layer under a linear loss are two rows of one layer each."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        shared = nn.Linear(3, 2, bias=False).double()
        x = torch.randn(6, 2, 3).double()
        y = torch.randn(6, 2, 2).double()

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = shared

        def forward(self, x):
            return torch.stack([self.layer(x[:, 0]), self.layer(x[:, 1])], 1)

    problem = Problem(Twice(), "gaussian", train=(x, y))
    fisher = oracle.dense_fisher(problem.objective())
    optimizer = KFAC(problem.model, "gaussian", labels="exact", output_damping=0.0)
    optimizer.step(problem.objective())
    assert_close(block(optimizer, "layer.weight"), fisher)


def nearest_kronecker(matrix, m, k):
    """The nearest B ⊗ A to an MK × MK matrix, by the singular values of its rearrangement."""
    turned = matrix.view(m, k, m, k).transpose(1, 2).reshape(m * m, k * k)
    u, s, v = torch.linalg.svd(turned)
    return s[0] * torch.kron(u[:, 0].view(m, m), v[0].view(k, k))


class TiedLinear(nn.Module):
    """One square layer three times over, without anything between."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.layer(self.layer(self.layer(x)))


def test_a_layer_used_several_times_in_depth_has_the_nearest_product_to_its_exact_block():
    """In a linear network the sum over pairs of uses is the exact block."""
    with torch.random.fork_rng():
        torch.manual_seed(8)
        model, x, y = TiedLinear().double(), torch.randn(7, 3).double(), torch.randn(7, 3).double()
    problem = Problem(model, "gaussian", train=(x, y))
    fisher = oracle.dense_fisher(problem.objective())
    observer = oracle.observer(model, "gaussian", labels="exact", output_damping=0.0)
    problem.objective()()
    sums = observer.take().sums.moments[0]
    assert sums.inputs.shape == (3, 3, 1, 3, 3)
    pairs = torch.einsum("rsij,rskl->ikjl", sums.outputs[:, :, 0], sums.inputs[:, :, 0])
    assert_close(pairs.reshape(9, 9) / sums.rows / 7, fisher)
    a, b = sums.factors(7)
    assert_close(torch.kron(b[0], a[0]), nearest_kronecker(fisher, 3, 3))
    assert float(torch.linalg.eigvalsh(a[0])[0]) > 0
    assert_close(a[0].trace(), sums.inputs[range(3), range(3), 0].sum(0).trace() / 3 / sums.rows)


def test_weights_tied_between_modules_take_their_pairs_of_uses_into_account():
    problem = cases.problem("tied")
    optimizer = KFAC(problem.model, problem.likelihood, labels="exact", output_damping=0.0)
    before = cases.problem("tied")
    optimizer.step(problem.objective())
    model, batch = before.model, batch_of(before)
    h0 = batch.inputs
    places = [h0]
    for _ in range(2):
        places.append(torch.tanh(model.first(places[-1])))
    uses = [h.detach() for h in places]
    gradients = []
    for use in range(3):
        shift = torch.zeros(6, 4, dtype=torch.float64)

        def outputs(shift, use=use):
            h = h0
            for i in range(2):
                h = torch.tanh(model.first(h) + (shift if i == use else 0))
            return model.head(h) + (shift if use == 2 else 0)

        jacobian = torch.autograd.functional.jacobian(outputs, shift)
        gradients.append(torch.stack([jacobian[n, :, n] for n in range(6)]))
    matrix = sum(
        torch.kron(
            torch.einsum("ncm,ncl->ml", gradients[r], gradients[s]) / 6, uses[r].T @ uses[s] / 6
        )
        for r in range(3)
        for s in range(3)
    )
    assert_close(block(optimizer, "first.weight"), nearest_kronecker(matrix, 4, 4), 1e-8)
    assert any("shared by first, head" in row.reason for row in optimizer.coverage())


def test_reduced_sharing_is_exact_where_the_loss_sees_the_mean_of_the_places():
    """A linear network over tokens whose outputs are averaged: expand is not exact there."""
    with torch.random.fork_rng():
        torch.manual_seed(9)

        class Mean(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)

            def forward(self, x):
                return self.second(self.first(x)).mean(1)

        model = Mean().double()
        x, y = torch.randn(5, 3, 3).double(), torch.randn(5, 2).double()
    problem = Problem(model, "gaussian", train=(x, y))
    fisher = oracle.dense_fisher(problem.objective())
    errors = {}
    for sharing in ("reduce", "expand"):
        observer = oracle.observer(
            model, "gaussian", labels="exact", output_damping=0.0, sharing=sharing
        )
        problem.objective()()
        sums = observer.take().sums
        for position, layer in enumerate(observer.statistics.plan.layers):
            a, b = sums.moments[position].factors(sums.weight)
            found = torch.kron(b[0], a[0])
            if layer.bias is None:
                index = torch.arange(16, 24)
            else:
                index = torch.cat([torch.arange(12).view(4, 3), torch.arange(12, 16)[:, None]], 1)
            index = index.flatten()
            truth = fisher[index[:, None], index]
            errors[sharing, position] = float((found - truth).norm() / truth.norm())
        observer.close()
    assert max(errors["reduce", i] for i in (0, 1)) < 1e-12
    assert min(errors["expand", i] for i in (0, 1)) > 0.1
