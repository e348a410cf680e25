"""Natural kernels against explicit P × P solves, and where they are isotropic."""

import pytest
from test_kernels_ntk import dense_jacobian

from cases import objective
from kobai.curvature import STRUCTURES, Fisher
from kobai.kernels import natural_kernel
from tolerances import assert_close

# Damping forms differ where there are Kronecker factors or a chain of damped blocks.
CHOICES = [(name, "exact") for name in STRUCTURES] + [
    ("kronecker", "each"), ("kronecker", "pi"), ("chain", "each"), ("ekfac", "each"),
]  # fmt: skip


@pytest.mark.parametrize(("structure", "form"), CHOICES)
@pytest.mark.parametrize("name", ["regression", "cnn", "norms", "transformer"])
def test_kernel_is_the_explicit_solve(name, structure, form):
    risk = objective(name)
    damping = 1e-2
    found = natural_kernel(risk, structure, damping, damping_form=form)
    jacobian = dense_jacobian(risk)
    fisher = Fisher(risk, structure)
    inverse = fisher.inverse(damping, form).dense()
    expected = jacobian @ inverse @ jacobian.T / risk.weight
    if name not in ("regression", "norms"):
        # Softmax residuals sum to zero over the classes: other columns do not matter.
        outputs = risk.outputs(risk.theta())
        batch = next(iter(risk.batches))
        pure = risk.likelihood.residual(outputs, batch.targets).flatten()
        assert_close(found.flatten(2).flatten(0, 1) @ pure, expected @ pure, 1e-8)
        return
    assert_close(found.flatten(2).flatten(0, 1), expected, 1e-8)
