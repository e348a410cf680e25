"""The tangent kernel against dense Jacobians of torch.func, whatever the method."""

import pytest
import torch

from cases import CASES, objective
from kobai.kernels import ntk
from kobai.problem import pure
from tolerances import assert_close


def dense_jacobian(risk, theta=None):
    """(N C, P) by reverse mode, one row at a time (vectorised rules of fused layers are wrong)."""
    theta = risk.theta() if theta is None else theta

    def outputs(theta):
        return torch.cat([risk.forward(theta, batch).flatten() for batch in risk.batches])

    with pure(risk.model, coupled=risk.coupled):
        return torch.func.jacrev(outputs, chunk_size=1)(theta)


def dense_kernel(risk, other=None):
    jacobian = dense_jacobian(risk)
    second = jacobian if other is None else dense_jacobian(other)
    count = len(second) // (risk if other is None else other).size
    return (jacobian @ second.T).view(risk.size, count, -1, count)


@pytest.mark.parametrize("method", ["auto", "layers", "jacobian", "products"])
@pytest.mark.parametrize("name", CASES)
def test_every_method_is_the_dense_jacobian(name, method):
    risk = objective(name)
    assert_close(ntk(risk, method=method), dense_kernel(risk))
