"""Trace, diagonal and Frobenius norm, each with a standard error that also decides when to stop."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from kobai.linalg.estimators.estimate import MIN_SAMPLES, Estimate, VectorEstimate
from kobai.linalg.estimators.probes import rademacher
from kobai.linalg.estimators.sketch import hutch_plus_plus, xdiag, xtrace
from kobai.linalg.operators.operator import LinearOperator

TraceMethod = Literal["auto", "hutchinson", "hutch++", "xtrace", "exact"]
DiagonalMethod = Literal["hutchinson", "xdiag", "exact"]


def trace(
    operator: LinearOperator,
    *,
    method: TraceMethod = "auto",
    tolerance: float = 0.01,
    max_products: int = 300,
    block: int = 8,
    max_bytes: int = 2**28,
    generator: torch.Generator,
) -> Estimate:
    """Trace of a square operator, with a standard error.

    The error falls fast where few eigenvalues carry the trace. Where positive and negative ones
    cancel (the Hessian of a fresh network), tr A is small beside ‖A‖_F √2, which is the standard
    deviation of one probe: then a relative error of one percent may be out of reach of any method,
    the budget ends first, and the status and the standard error say so.

    - ``"auto"``: "hutch++" for a symmetric matrix, "hutchinson" for any other.
    - ``"hutchinson"``: the mean of zᵀAz over Rademacher probes z [Girard 1989, Hutchinson 1989].
      Any square matrix; one product per sample; no memory beyond one block. The error falls as
      1/sqrt(products).
    - ``"hutch++"`` and ``"xtrace"``: symmetric matrices; take the leading eigenvectors out first
      (see `kobai.linalg.estimators.sketch`). Far fewer products where few eigenvalues carry the
      trace. The first sees whether they do, and becomes "hutchinson" by itself where they do not,
      or where a sketch does not fit into ``max_bytes``; the second holds up to 2 times
      ``max_products`` vectors of length n.
    - ``"exact"``: n products.

    A matrix of size n <= 3 * MIN_SAMPLES <= max_products is summed exactly by every method, as the
    status says.

    Args:
        operator: the square matrix.
        method: see above.
        tolerance: stop when standard error <= tolerance * |value|; 0 spends the whole budget.
        max_products: the budget.
        block: probes multiplied together.
        max_bytes: bound on the memory of "hutch++", beyond a block of probes and products.
        generator: source of randomness.

    Raises:
        ValueError: operator not square (not symmetric, for the methods that need it), an unknown
            method, negative tolerance, a budget, block or memory bound below 1.
    """
    _check_request(operator, tolerance, max_products, block)
    if method not in ("auto", "hutchinson", "hutch++", "xtrace", "exact"):
        raise ValueError(f"method is auto, hutchinson, hutch++, xtrace or exact; got {method!r}")
    if max_bytes < 1:
        raise ValueError(f"max_bytes is a bound on memory of at least 1; got {max_bytes}")
    if method == "auto":
        method = "hutch++" if operator.symmetric else "hutchinson"
    if method == "exact" or operator.shape[0] <= min(3 * MIN_SAMPLES, max_products):
        return _sum(_exact_diagonal(operator, block))
    if method == "hutchinson":

        def sample(count: int) -> Tensor:
            probes = rademacher(operator, count, generator=generator)
            return (probes * (operator @ probes)).sum(dim=0, dtype=torch.float64).cpu()

        return _mean(sample, tolerance=tolerance, max_products=max_products, block=block)
    _check_symmetric(operator, method)
    if method == "hutch++":
        return hutch_plus_plus(
            operator,
            tolerance=tolerance,
            max_products=max_products,
            block=block,
            max_bytes=max_bytes,
            generator=generator,
        )
    return xtrace(operator, tolerance=tolerance, max_products=max_products, generator=generator)


def squared_frobenius_norm(
    operator: LinearOperator,
    *,
    tolerance: float = 0.01,
    max_products: int = 1000,
    block: int = 8,
    generator: torch.Generator,
) -> Estimate:
    """Sum of squares of all entries: the mean of ‖Az‖² over Rademacher probes z.

    For a symmetric matrix it is the sum of the squared eigenvalues. One product a sample.

    Args:
        operator: any matrix.
        tolerance: stop when standard error <= tolerance * value; 0 spends the whole budget.
        max_products: the budget.
        block: probes multiplied together.
        generator: source of randomness.

    Raises:
        ValueError: negative tolerance, a budget or block below 1.
    """
    _check_request(operator, tolerance, max_products, block, square=False)

    def sample(count: int) -> Tensor:
        product = operator @ rademacher(operator, count, generator=generator)
        return product.to(torch.float64).square().sum(dim=0).cpu()

    return _mean(sample, tolerance=tolerance, max_products=max_products, block=block)


def diagonal(
    operator: LinearOperator,
    *,
    method: DiagonalMethod = "hutchinson",
    tolerance: float = 0.01,
    max_products: int = 1000,
    block: int = 8,
    generator: torch.Generator,
) -> VectorEstimate:
    """Diagonal of a square operator, with a standard error for each entry.

    - ``"hutchinson"``: the mean of z * Az over Rademacher probes z [Bekas, Kokiopoulou & Saad
      2007]. Any square matrix; an entry's error is the norm of the rest of its row /
      sqrt(products).
    - ``"xdiag"``: symmetric matrices with quickly falling eigenvalues (see
      `kobai.linalg.estimators.sketch`).
    - ``"exact"``: n products.

    Args:
        operator: the square matrix.
        method: see above.
        tolerance: stop when the norm of the standard errors <= tolerance * the norm of the value; 0
            spends the whole budget.
        max_products: the budget.
        block: probes multiplied together.
        generator: source of randomness.

    Raises:
        ValueError: operator not square (not symmetric, for "xdiag"), an unknown method, negative
            tolerance, a budget or block below 1.
    """
    _check_request(operator, tolerance, max_products, block)
    if method not in ("hutchinson", "xdiag", "exact"):
        raise ValueError(f"method is hutchinson, xdiag or exact; got {method!r}")
    if method == "exact" or operator.shape[0] <= min(3 * MIN_SAMPLES, max_products):
        return _exact_diagonal(operator, block)
    if method == "xdiag":
        _check_symmetric(operator, method)
        return xdiag(operator, tolerance=tolerance, max_products=max_products, generator=generator)
    size = operator.shape[0]
    total = torch.zeros(size, dtype=torch.float64, device=operator.device)
    squares = torch.zeros_like(total)
    count, status = 0, "max-products"
    value = error = total
    while count < max_products:
        probes = rademacher(operator, min(block, max_products - count), generator=generator)
        samples = (probes * (operator @ probes)).detach().to(torch.float64)
        # Welford's update: the sum of squares about the mean so far, without cancellation.
        before, count = count, count + samples.shape[1]
        mean = samples.mean(dim=1)
        shift = mean - total
        total = total + shift * (samples.shape[1] / count)
        squares = squares + (samples - mean[:, None]).square().sum(dim=1)
        squares = squares + shift.square() * (before * samples.shape[1] / count)
        value = total
        error = (squares / (max(count - 1, 1) * count)).sqrt()
        error = error if count > 1 else torch.full_like(error, math.inf)
        if not bool(torch.isfinite(value).all()):
            status = "non-finite"
            break
        if count >= MIN_SAMPLES and float(error.norm()) <= tolerance * float(value.norm()):
            status = "converged"
            break
    return VectorEstimate(
        value=value.to(operator.dtype),
        standard_error=error.to(operator.dtype),
        num_products=count,
        num_samples=count,
        status=status,
    )


def _mean(
    sample: Callable[[int], Tensor], *, tolerance: float, max_products: int, block: int
) -> Estimate:
    """Mean of independent samples, drawn in blocks until its standard error is small enough."""
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
            mean = error = math.nan
            status = "non-finite"
            break
        if count >= MIN_SAMPLES and error <= tolerance * abs(mean):
            status = "converged"
            break
    return Estimate(
        value=mean, standard_error=error, num_products=count, num_samples=count, status=status
    )


def _exact_diagonal(operator: LinearOperator, block: int) -> VectorEstimate:
    """The diagonal by multiplying the unit vectors, in blocks."""
    size = operator.shape[0]
    value = torch.empty(size, dtype=operator.dtype, device=operator.device)
    for start in range(0, size, block):
        stop = min(start + block, size)
        columns = torch.zeros(size, stop - start, dtype=operator.dtype, device=operator.device)
        rows = torch.arange(start, stop, device=operator.device)
        columns[rows, rows - start] = 1.0
        value[start:stop] = (operator @ columns).detach()[rows, rows - start]
    finite = bool(torch.isfinite(value).all())
    return VectorEstimate(
        value=value,
        standard_error=torch.zeros_like(value) if finite else torch.full_like(value, math.nan),
        num_products=size,
        num_samples=0,
        status="exact" if finite else "non-finite",
    )


def _sum(estimate: VectorEstimate) -> Estimate:
    total = float(estimate.value.sum(dtype=torch.float64))
    finite = math.isfinite(total)
    return Estimate(
        value=total if finite else math.nan,
        standard_error=0.0 if finite else math.nan,
        num_products=estimate.num_products,
        num_samples=0,
        status="exact" if finite else "non-finite",
    )


def _check_symmetric(operator: LinearOperator, method: str) -> None:
    if not operator.symmetric:
        raise ValueError(f"method {method!r} needs a symmetric operator; use 'hutchinson'")


def _check_request(
    operator: LinearOperator,
    tolerance: float,
    max_products: int,
    block: int,
    *,
    square: bool = True,
) -> None:
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
