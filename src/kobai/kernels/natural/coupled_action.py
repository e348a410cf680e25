"""What structures with blocks between layers do in function space: tridiagonal and chain.

For M = Sᵀ Π S / W with S = blockdiag(G_l) and the outputs' rows G = (1…1) S, the kernel is
Σ_l G'_l G_lᵀ v_l / W with (Π K/W + λ) v = (I … I)ᵀ, K = blockdiag(K_l).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.curvature.rows import Rows
from kobai.curvature.structures import Chain, Tridiagonal
from kobai.curvature.structures.coupled_layers import check_system
from kobai.curvature.structures.tridiagonal import neighbours
from kobai.kernels.natural.block_actions import Action
from kobai.linalg.factor import eigh, lu


def coupled_action(
    matrix: Tridiagonal | Chain,
    left: Sequence[Rows],
    right: Sequence[Rows],
    weight: float,
    damping: float,
) -> Action:
    """The kernel of a matrix over all layers, exact damping.

    With damping by an LU of L R rows. Without, by the eigendecomposition of K^½ Π K^½ / W, whose
    pseudo-inverse is the limit of vanishing damping also where Π is indefinite or singular.

    Args:
        matrix: The structure.
        left: G'_l of every layer.
        right: G_l.
        weight: W.
        damping: λ.

    Raises:
        ValueError: If the dense system is too large.
    """
    grams = [rows.gram() for rows in right]
    crosses = grams if left is right else [a.gram(b) for a, b in zip(left, right, strict=True)]
    count, layers = right[0].count, len(right)
    check_system(count * layers)
    if damping > 0:
        inner = _coupling(matrix, count) @ torch.block_diag(*grams) / weight
        inner.diagonal().add_(damping)
        factor = lu(inner)
        ones = torch.eye(count, dtype=inner.dtype, device=inner.device).repeat(layers, 1)
        mixed, status = factor.solve(ones), factor.status
        shares = mixed.view(layers, count, count)
    else:
        shares, status = _undamped(matrix, grams, weight)
    kernel = sum(
        (cross @ share for cross, share in zip(crosses, shares, strict=True)),
        torch.zeros_like(crosses[0]),
    )
    return Action(kernel=kernel / weight, status=status)


def _undamped(
    matrix: Tridiagonal | Chain, grams: list[Tensor], weight: float
) -> tuple[Float[Tensor, "L R R"], str]:
    """K_l^{−½} [(K^½ Π K^½ / W)⁺ K^½ (I … I)ᵀ]_l for every layer."""
    roots, inverses, deficient = [], [], False
    for gram in grams:
        spectral = eigh(gram)
        if spectral.status != "ok":
            return torch.full_like(torch.stack(grams), torch.nan), spectral.status
        values, vectors = spectral.values, spectral.vectors
        kept = values > values.max() * len(values) * torch.finfo(gram.dtype).eps
        deficient = deficient or not bool(kept.all())
        chosen, values = vectors[:, kept], values[kept]
        roots.append(chosen * values.sqrt())
        inverses.append(chosen / values.sqrt())
    layers, count = len(grams), len(grams[0])
    root = torch.block_diag(*roots)
    coupling = _coupling(matrix, count).to(root.dtype)
    spectral = eigh(root.T @ coupling @ root / weight)
    if spectral.status != "ok":
        return torch.full_like(torch.stack(grams), torch.nan), spectral.status
    values, vectors = spectral.values, spectral.vectors
    kept = values.abs() > values.abs().max() * len(values) * torch.finfo(grams[0].dtype).eps
    right = root.T @ torch.eye(count, dtype=root.dtype, device=root.device).repeat(layers, 1)
    solved = vectors[:, kept] @ ((vectors[:, kept].T @ right) / values[kept].unsqueeze(1))
    pieces = solved.split([piece.shape[1] for piece in roots])
    shares = torch.stack([a @ b for a, b in zip(inverses, pieces, strict=True)])
    status = "pseudo-inverse" if deficient or not bool(kept.all()) else "ok"
    return shares.to(grams[0].dtype), status


def _coupling(matrix: Tridiagonal | Chain, count: int) -> Float[Tensor, "LR LR"]:
    """Π, (L R, L R)."""
    layers = len(matrix.rows.layers)
    unit = torch.eye(layers * count, dtype=matrix.dtype, device=matrix.device)
    if isinstance(matrix, Chain):
        return matrix._mix(unit.view(layers, count, -1)).flatten(0, 1)
    return torch.kron(neighbours(layers, matrix.dtype, matrix.device), unit[:count, :count])
