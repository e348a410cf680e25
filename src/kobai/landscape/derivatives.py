"""Slopes and curvatures of an objective along directions, by automatic differentiation."""

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from kobai.problem import Objective

_KINKS = re.compile(
    r"(Relu|LeakyRelu|Prelu|Rrelu|Threshold|Hard|Softshrink|Clamp|Abs|Max|Min|Amax|Amin|Median|"
    r"Mkldnn\w*MaxPool|AdaptiveMax|FractionalMax|Sort|Topk)"
)


def slopes(objective: Objective, theta: Tensor, vectors: Tensor) -> tuple[float, Tensor, float]:
    """Compute loss, ∇L·d for every direction, and ‖∇L‖ at θ, by one backward pass.

    Args:
        objective: Any objective.
        theta: The point (P,).
        vectors: Directions as columns (P, D).

    Returns:
        L(θ); the slopes (D,) in float64 on the CPU; the gradient's Euclidean norm.
    """
    value, gradient = objective.value_and_grad(theta)
    gradient = gradient.double()
    along = torch.stack([torch.dot(gradient, column.double()) for column in vectors.T])
    return float(value), along.cpu(), float(gradient.norm())


def projected_hessian(objective: Objective, theta: Tensor, vectors: Tensor) -> Tensor:
    """Compute the D x D matrix of second derivatives dᵢᵀ H dⱼ at θ, float64 on the CPU.

    Cost: one gradient with its graph and D Hessian-vector products by double backward.
    """
    products = torch.zeros_like(vectors)
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        for share in objective.differentiable(theta):
            (gradient,) = torch.autograd.grad(share, theta, create_graph=True)
            if not gradient.requires_grad:
                continue  # this share is linear in θ
            for k, column in enumerate(vectors.T):
                (product,) = torch.autograd.grad(
                    gradient, theta, column, retain_graph=True, allow_unused=True
                )
                if product is not None:
                    products[:, k] += product
    columns = [column.double() for column in vectors.T]
    matrix = torch.stack(
        [torch.stack([torch.dot(u, p.double()) for p in products.T]) for u in columns]
    )
    return ((matrix + matrix.T) / 2).cpu()


def plane_eigenvalues(matrix: Tensor, gram: Tensor) -> Tensor:
    """Find the eigenvalues of the Hessian restricted to the plane, per distance, ascending.

    Args:
        matrix: dᵢᵀ H dⱼ.
        gram: dᵢᵀ dⱼ.
    """
    if not bool(torch.isfinite(matrix).all()):
        return torch.full((matrix.shape[0],), float("nan"), dtype=torch.float64)
    half = torch.linalg.inv(torch.linalg.cholesky(gram.cpu().double()))
    return torch.linalg.eigvalsh(half @ matrix @ half.T)


def has_kinks(objective: Objective, theta: Tensor) -> bool:
    """Tell whether L is only piecewise smooth in θ: ReLU, max pooling, clamps, absolute values.

    Found by their names in the autograd graph of one share of the loss. Where it is, a second
    difference sees how slopes jump at the kinks, and the Hessian, which exists almost everywhere,
    does not.
    """
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        for share in objective.differentiable(theta):
            return any(_KINKS.match(name) for name in _node_names(share))
    return False


def _node_names(value: Tensor) -> Iterator[str]:
    seen, stack = set(), [value.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node.name()
        stack.extend(following for following, _ in node.next_functions)
