"""EKFAC: K-FAC's eigenbases with the curvature along each of their directions measured."""

from typing import ClassVar, final

from kobai.optim.factored import FactoredOptimizer


@final
class EKFAC(FactoredOptimizer):
    r"""Natural gradient with the Fisher matrix's best diagonal in Kronecker-factored eigenbases.

    The block of a layer is (Q_B ⊗ Q_A) diag(s) (Q_B ⊗ Q_A)ᵀ: Q_A and Q_B diagonalise the factors of
    `KFAC`, and s is the mean square of single examples' gradients turned into that basis, where
    K-FAC has products of eigenvalues. Among all diagonals in that basis this s is nearest to the
    layer's Fisher block in Frobenius norm, so the block is never further from it than K-FAC's (in
    the basis of the same statistics). Bases are renewed with the inversions of K-FAC, s with every
    update of the statistics; after a renewal it starts at the products of eigenvalues, which count
    as one observation. The damping is exact, (F + λ)⁻¹, and may change from step to step.

    s is exact example by example, also where a layer shares its weights over places or is used
    several times: squares are taken of sums over places. (Layers whose input does not keep examples
    apart take every row for an example.)

    Args:
        model: See `KFAC`, also for all that follows; arguments, trust region, control of steps,
            state and counters are the same.

    Cost of a step beyond the gradient: 2 MK(M + K) multiplications for a layer with M outputs and K
    inputs, twice K-FAC's; with statistics due, K-FAC's and R(M² + K²) + RMK for R rows; with bases
    due, two eigendecompositions, about 10 (M³ + K³).

    Source: George et al. 2018, Fast approximate natural gradient descent in a Kronecker-factored
    eigenbasis (§3, Algorithm 1).

    Example:
        >>> import torch
        >>> from kobai.optim import EKFAC
        >>> model = torch.nn.utils.skip_init(torch.nn.Linear, 2, 1)
        >>> _ = torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        >>> optimizer = EKFAC(model, "gaussian", lr=0.1, damping=0.03)
        >>> x, y = torch.eye(2), torch.ones(2, 1)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     loss = 0.5 * (model(x) - y).square().sum() / 2
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> bool(loss < 1e-3)
        True
    """

    corrected: ClassVar[bool] = True
