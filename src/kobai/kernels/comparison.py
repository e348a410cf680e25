"""Kernels held against each other and against labels: drift and alignment."""

import torch
from jaxtyping import Float
from torch import Tensor


def kernel_drift(before: Float[Tensor, "..."], after: Float[Tensor, "..."]) -> float:
    """‖K_t − K_0‖ / ‖K_0‖ in the Frobenius norm: 0 in the lazy regime.

    Args:
        before: K_0, such as `ntk` at the initial parameters.
        after: K_t of the same points, ``ntk(objective, theta=...)``.

    Raises:
        ValueError: If the shapes differ.
    """
    _same(before, after)
    before, after = before.double(), after.double()
    return float(torch.linalg.vector_norm(after - before) / torch.linalg.vector_norm(before))


def kernel_distance(first: Float[Tensor, "..."], second: Float[Tensor, "..."]) -> float:
    """1 − ⟨K, K'⟩ / (‖K‖ ‖K'‖): how much a kernel turned, whatever its size.

    Source: Fort et al. 2020, Deep learning versus kernel learning (2010.15110), §4.

    Args:
        first: A kernel.
        second: Of the same points.

    Raises:
        ValueError: If the shapes differ.
    """
    _same(first, second)
    first, second = first.double().flatten(), second.double().flatten()
    return 1 - float(torch.cosine_similarity(first, second, 0))


def kernel_alignment(
    kernel: Float[Tensor, "..."], targets: Float[Tensor, "N *C"], *, centred: bool = True
) -> float:
    """⟨K, y yᵀ⟩ / (‖K‖ ‖y yᵀ‖): 1 if the kernel is the labels' own outer product.

    Source: Cristianini et al. 2001, On kernel-target alignment; centred as in Cortes, Mohri and
    Rostamizadeh 2012, Algorithms for learning kernels based on centered alignment.

    Args:
        kernel: (N, N), or (N, C, N, C), then held against the vector of all targets.
        targets: y, (N,) or (N, C): numbers, or one-hot classes.
        centred: Take the mean over examples out of both (for each output).

    Returns:
        A number between −1 and 1, not below 0 for a positive semidefinite kernel.

    Raises:
        ValueError: If the shapes do not fit.
    """
    values = targets.double().reshape(len(targets), -1)
    matrix = kernel.double()
    if matrix.ndim == 2 and matrix.shape == (len(values), len(values)):
        matrix, flat = matrix.unsqueeze(1).unsqueeze(3), values.unsqueeze(1)
    elif matrix.ndim == 4 and matrix.shape == (*values.shape, *values.shape):
        flat = values.unsqueeze(2)
    else:
        raise ValueError(
            f"a kernel of shape {tuple(kernel.shape)} does not fit targets of shape "
            f"{tuple(targets.shape)}"
        )
    if centred:
        flat = flat - flat.mean(0, keepdim=True)
        matrix = matrix - matrix.mean(0, keepdim=True)
        matrix = matrix - matrix.mean(2, keepdim=True)
    columns = flat.flatten(0, 1)
    square = matrix.flatten(2).flatten(0, 1)
    overlap = float((columns * (square @ columns)).sum())
    sizes = torch.linalg.vector_norm(square) * torch.linalg.matrix_norm(columns.T @ columns)
    return overlap / float(sizes)


def _same(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"kernels of the same points have one shape, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
