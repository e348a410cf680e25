"""Trace, diagonal and Frobenius norm from random probes, each with a standard error that also stops it."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kobai.linalg.estimate import Estimate, VectorEstimate
from kobai.linalg.operator import LinearOperator
from kobai.linalg.probes import rademacher

# Fewer samples say too little about their own spread to stop by it.
MIN_SAMPLES = 10

TraceMethod = Literal["hutchinson", "exact"]


def trace(
    operator: LinearOperator,
    *,
    method: TraceMethod = "hutchinson",
    tolerance: float = 0.01,
    max_products: int = 1000,
    block: int = 8,
    generator: torch.Generator,
) -> Estimate:
    """Trace of a square operator, with a standard error.

    ``"hutchinson"``: the mean of zᵀAz over Rademacher probes z [Hutchinson 1989, Girard 1989]; any
    square matrix; no memory beyond one block. One product a sample.
    ``"exact"``: n products.

    Args:
        operator: the square matrix.
        method: see above.
        tolerance: stop when standard error <= tolerance * |value|; 0 spends the whole budget.
        max_products: the budget.
        block: probes multiplied together.
        generator: source of randomness.

    Raises:
        ValueError: operator not square, negative tolerance, a budget or block below 1.
    """
    check_request(operator, tolerance, max_products, block)
    if method == "exact":
        return _exact(operator, block)

    def sample(count: int) -> Tensor:
        probes = rademacher(operator, count, generator=generator)
        return (probes * (operator @ probes)).sum(dim=0, dtype=torch.float64).cpu()

    return estimate_mean(sample, tolerance=tolerance, max_products=max_products, block=block)


def squared_frobenius_norm(
    operator: LinearOperator,
    *,
    tolerance: float = 0.01,
    max_products: int = 1000,
    block: int = 8,
    generator: torch.Generator,
) -> Estimate:
    """Sum of squares of all entries, as the mean of ‖Az‖² over Rademacher probes: one product a sample.

    For a symmetric matrix it is the sum of the squared eigenvalues.

    Args:
        operator: any matrix.
        tolerance: stop when standard error <= tolerance * value; 0 spends the whole budget.
        max_products: the budget.
        block: probes multiplied together.
        generator: source of randomness.

    Raises:
        ValueError: negative tolerance, a budget or block below 1.
    """
    check_request(operator, tolerance, max_products, block, square=False)

    def sample(count: int) -> Tensor:
        product = operator @ rademacher(operator, count, generator=generator)
        return product.to(torch.float64).square().sum(dim=0).cpu()

    return estimate_mean(sample, tolerance=tolerance, max_products=max_products, block=block)


def estimate_mean(
    sample: Callable[[int], Tensor], *, tolerance: float, max_products: int, block: int
) -> Estimate:
    """Mean of independent samples, drawn in blocks until its standard error is small enough.

    Args:
        sample: draws the given number of samples, one product each, as a float64 CPU vector.
        tolerance: stop when standard error <= tolerance * |mean|, from `MIN_SAMPLES` samples on.
        max_products: most samples drawn.
        block: samples drawn together.
    """
    drawn: list[Tensor] = []
    count, status = 0, "max-products"
    mean, error = math.nan, math.nan
    while count < max_products:
        drawn.append(sample(min(block, max_products - count)).detach())
        count += drawn[-1].numel()
        values = torch.cat(drawn)
        mean = float(values.mean())
        error = float(values.std() / math.sqrt(count)) if count > 1 else math.inf
        if not math.isfinite(mean):
            return Estimate(
                value=math.nan,
                standard_error=math.nan,
                num_products=count,
                num_samples=count,
                status="non-finite",
            )
        if count >= MIN_SAMPLES and error <= tolerance * abs(mean):
            status = "converged"
            break
    return Estimate(
        value=mean, standard_error=error, num_products=count, num_samples=count, status=status
    )


def check_request(
    operator: LinearOperator,
    tolerance: float,
    max_products: int,
    block: int,
    *,
    square: bool = True,
) -> None:
    """Raise ValueError for an estimate that cannot be asked for."""
    if square and operator.shape[0] != operator.shape[1]:
        raise ValueError(f"the operator must be square; got shape {operator.shape}")
    if operator.shape[1] == 0:
        raise ValueError("the operator is empty")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is a relative error, at least 0; got {tolerance}")
    if max_products < 1:
        raise ValueError(f"max_products is a budget of at least 1; got {max_products}")
    if block < 1:
        raise ValueError(f"block is a number of columns, at least 1; got {block}")


def _exact(operator: LinearOperator, block: int) -> Estimate:
    """The trace by multiplying the unit vectors, in blocks."""
    size = operator.shape[0]
    total = 0.0
    for start in range(0, size, block):
        stop = min(start + block, size)
        columns = torch.zeros(size, stop - start, dtype=operator.dtype, device=operator.device)
        rows = torch.arange(start, stop)
        columns[rows, rows - start] = 1.0
        product = (operator @ columns).detach()
        total += float(product[rows, rows - start].sum(dtype=torch.float64))
    finite = math.isfinite(total)
    return Estimate(
        value=total if finite else math.nan,
        standard_error=0.0 if finite else math.nan,
        num_products=size,
        num_samples=0,
        status="exact" if finite else "non-finite",
    )
