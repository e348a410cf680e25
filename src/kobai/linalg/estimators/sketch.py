"""Trace and diagonal with a low-rank part taken out: Hutch++, XTrace and XDiag.

Where eigenvalues fall quickly these need far fewer products than plain averaging of random probes.
They hold a fraction of the budget as vectors of length n. All three use only products with vectors
already at hand when they grow, so nothing is multiplied twice.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.estimators.estimate import MIN_SAMPLES, Estimate, VectorEstimate
from kobai.linalg.estimators.probes import gaussian, rademacher
from kobai.linalg.operators.operator import LinearOperator


def hutch_plus_plus(
    operator: LinearOperator,
    *,
    tolerance: float,
    max_products: int,
    block: int,
    max_bytes: int,
    generator: torch.Generator,
) -> Estimate:
    """tr A = tr QᵀAQ + tr (I-QQᵀ)A(I-QQᵀ): the first exactly, the second from probes.

    Q spans A times random vectors [Meyer, Musco, Musco & Woodruff 2021]. The sketch doubles while
    that is expected to be cheaper than the probes it saves [as Persson, Cortinovis & Kressner
    2022], where the latest doubling tells what the next one brings: on a spectrum without a leading
    part it stays small and all else are plain probes, of which nothing is kept. It takes up to two
    thirds of the budget and ``max_bytes``. The standard error is that of the second part, given Q.

    Args:
        operator: symmetric.
        tolerance: stop when standard error <= tolerance * |value|.
        max_products: the budget.
        block: probes multiplied together.
        max_bytes: bound on the memory for the sketch; none fits: plain probes.
        generator: source of randomness.
    """
    sketch = _Sketch(operator, generator)
    size = operator.shape[0]
    # Four matrices are kept, and as much again is in use while they grow.
    fits = max_bytes // (8 * size * torch.finfo(operator.dtype).bits // 8)
    room = max(max_products - MIN_SAMPLES, 0) // 2
    sketch.grow(min(block, room, size // 2, fits))
    probes, images = _nothing(operator), _nothing(operator)
    samples = torch.zeros(0, dtype=torch.float64)
    deviation, final = math.nan, False
    while True:
        if sketch.broken:
            spent = sketch.num_products + samples.numel()
            return _estimate(math.nan, math.nan, spent, samples.numel(), "non-finite")
        count = samples.numel()
        spent = sketch.num_products + count
        if count:
            value, error = _with_remainder(sketch, samples)
            if not math.isfinite(value):
                return _estimate(math.nan, math.nan, spent, count, "non-finite")
            goal = tolerance * abs(value)
            if count >= MIN_SAMPLES and error <= goal:
                return _estimate(value, error, spent, count, "converged")
            if spent >= max_products:
                return _estimate(value, error, spent, count, "max-products")
            if count >= MIN_SAMPLES and not final:
                rank, now = sketch.rank, float(samples.std())
                more = count * ((error / goal) ** 2 - 1) if goal > 0 else math.inf
                # The share of those probes that a doubling saves, by what the latest one saved.
                saved = 1 - (now / deviation) ** 2 if math.isfinite(deviation) else 1.0
                allowed = 2 * (2 * rank) <= 2 * max_products // 3 and 4 * rank <= size
                worth = saved > 0.1 and more * saved > 2 * rank
                if rank and sketch.growing and allowed and 2 * rank <= fits and worth:
                    deviation = now
                    sketch.grow(rank)
                    samples = _remainder(sketch, probes, images)
                    continue
                final = True
                probes, images = _nothing(operator), _nothing(operator)
        wanted = max(block, MIN_SAMPLES - count)
        fresh = gaussian(operator, min(wanted, max_products - spent), generator=generator)
        products = (operator @ fresh).detach()
        samples = torch.cat([samples, _remainder(sketch, fresh, products)])
        if not final:
            probes = torch.cat([probes, fresh], dim=1)
            images = torch.cat([images, products], dim=1)


def xtrace(
    operator: LinearOperator,
    *,
    tolerance: float,
    max_products: int,
    generator: torch.Generator,
) -> Estimate:
    """XTrace [Epperly, Tropp & Webber 2024, §2.1]: each random vector sketches for all others.

    With k random vectors (2 k products), estimate i takes the low-rank part from all vectors but
    the i-th and the remainder from the i-th, scaled to the dimension of the remainder; the k
    estimates are averaged. The standard error is the jackknife's: the k estimates share most of
    their vectors, and their own spread would understate it by up to one half. The number of
    vectors doubles until it is small enough.

    Args:
        operator: symmetric.
        tolerance: stop when standard error <= tolerance * |value|.
        max_products: the budget, at least 4.
        generator: source of randomness.
    """
    if max_products < 4:
        raise ValueError(f"XTrace needs at least 4 products; got max_products={max_products}")
    sketch = _Sketch(operator, generator)
    most = min(max_products // 2, operator.shape[0] - 1)
    sketch.grow(min(MIN_SAMPLES, most))
    while True:
        count, spent = sketch.count, sketch.num_products
        value, error = _xtrace_of(sketch, operator.shape[0])
        if not math.isfinite(value):
            return _estimate(math.nan, math.nan, spent, count, "non-finite")
        if count >= MIN_SAMPLES and error <= tolerance * abs(value):
            return _estimate(value, error, spent, count, "converged")
        if count >= most:
            return _estimate(value, error, spent, count, "max-products")
        sketch.grow(min(count, most - count))


def _xtrace_of(sketch: "_Sketch", size: int) -> tuple[float, float]:
    """XTrace and its jackknife error: small float64 matrices only."""
    count, rank = sketch.count, sketch.rank
    small, directions, triangle = sketch.small(), sketch.left_out(), sketch.triangle()
    if sketch.broken or not bool(torch.isfinite(small).all()):
        return math.nan, math.nan
    inside = sketch.coefficients()
    inner, squares = _dots(sketch.probes, sketch.images), _dots(sketch.probes, sketch.probes)

    def estimates(missing: Tensor, extra: Tensor) -> Tensor:
        """Estimates (c, k): the i-th with missing[c, :, i] and extra[c] out of the basis."""
        along = inside - missing * (missing * inside).sum(dim=1, keepdim=True)
        along = along - extra.unsqueeze(2) * (extra @ inside).unsqueeze(1)
        # (ω - Qx)ᵀ A (ω - Qx) with x the part of ω inside the space that is left.
        rest = inner - 2 * (along * triangle).sum(dim=1) + (along * (small @ along)).sum(dim=1)
        left = squares - along.square().sum(dim=1)
        kept = rank - missing.square().sum(dim=1) - extra.square().sum(dim=1, keepdim=True)
        taken = (missing * (small @ missing)).sum(dim=1)
        taken = taken + ((extra @ small) * extra).sum(dim=1, keepdim=True)
        return small.trace() - taken + (size - kept) * rest / left.clamp(min=1e-300)

    value = float(estimates(directions[None], torch.zeros(1, rank, dtype=torch.float64)).mean())
    without = torch.empty(count, dtype=torch.float64)
    # As many at a time as stay within some tens of megabytes.
    for gone in torch.arange(count).split(max(1, 2**20 // max(rank * count, 1))):
        each = estimates(_turned_from(directions, gone), directions[:, gone].T)
        own = each[torch.arange(gone.numel()), gone]
        without[gone] = (each.sum(dim=1) - own) / max(count - 1, 1)
    return value, float(_jackknife_error(without))


def xdiag(
    operator: LinearOperator,
    *,
    tolerance: float,
    max_products: int,
    generator: torch.Generator,
) -> VectorEstimate:
    """XDiag [Epperly, Tropp & Webber 2024, §2.3]: the diagonal by the idea of `xtrace`.

    Args:
        operator: symmetric.
        tolerance: stop when the norm of the standard errors <= tolerance * the norm of the value.
        max_products: the budget, at least 4.
        generator: source of randomness.
    """
    if max_products < 4:
        raise ValueError(f"XDiag needs at least 4 products; got max_products={max_products}")
    sketch = _Sketch(operator, generator, signs=True)
    most = min(max_products // 2, operator.shape[0] - 1)
    sketch.grow(min(MIN_SAMPLES, most))
    while True:
        count = sketch.count
        value, error = _xdiag_of(sketch)
        size, spread = float(value.norm()), float(error.norm())
        status = ""
        if not math.isfinite(size):
            status = "non-finite"
        elif count >= MIN_SAMPLES and spread <= tolerance * size:
            status = "converged"
        elif count >= most:
            status = "max-products"
        if status:
            return VectorEstimate(
                value=value,
                standard_error=error,
                num_products=sketch.num_products,
                num_samples=count,
                status=status,
            )
        sketch.grow(min(count, most - count))


def _xdiag_of(sketch: "_Sketch") -> tuple[Tensor, Tensor]:
    """XDiag and its jackknife errors: n k² operations for k random vectors."""
    basis, images, probes = sketch.basis, sketch.basis_images, sketch.probes
    if sketch.broken:
        nothing = torch.full_like(probes[:, 0], math.nan)
        return nothing, nothing
    directions, triangle = sketch.left_out(), sketch.triangle()
    common = (basis * images).sum(dim=1)
    if bool((directions == 0).all()):
        # Each vector is spanned by the others; what it sees beyond them is rounding.
        samples = common[:, None] + probes * (sketch.images - basis @ triangle.to(basis))
        return samples.mean(dim=1), samples.std(dim=1) / math.sqrt(sketch.count)

    def estimates(missing: Tensor) -> Tensor:
        """Estimate i without the i-th columns of ``missing`` in the basis."""
        like = missing.to(basis)
        pull = (missing * triangle).sum(dim=0).to(basis)
        return (basis @ like) * (probes * pull - images @ like)

    value = common + estimates(directions).mean(dim=1)
    turned, imaged = basis @ directions.to(basis), images @ directions.to(basis)
    mean = squares = torch.zeros_like(common)
    for j in range(sketch.count):
        turned_away = _turned_from(directions, torch.tensor([j]))[0]
        without = _others(estimates(turned_away), j).mean(dim=1)
        without = without - turned[:, j] * imaged[:, j]
        shift = without - mean
        mean = mean + shift / (j + 1)
        squares = squares + shift * (without - mean)
    count = sketch.count
    return value, (squares * ((count - 1) / count)).sqrt()


def _turned_from(directions: Tensor, gone: Tensor) -> Float[Tensor, "c r k"]:
    """The part of direction i that is orthogonal to direction j, which vector i brings alone."""
    own = directions[:, gone].T
    turned = directions - own.unsqueeze(2) * (own @ directions).unsqueeze(1)
    lengths = turned.norm(dim=1, keepdim=True)
    # Column j itself vanishes; its estimate is not used.
    return turned / torch.where(lengths > 1e-12, lengths, 1.0)


def _others(estimates: Tensor, j: int) -> Tensor:
    """All estimates but the j-th, along the last axis."""
    return torch.cat([estimates[..., :j], estimates[..., j + 1 :]], dim=-1)


def _jackknife_error(without: Float[Tensor, "k"]) -> Tensor:
    """Standard error from the values without one vector each [Efron & Stein 1981]: errs upwards."""
    count = without.numel()
    return ((count - 1) / count * (without - without.mean()).square().sum()).sqrt()


class _Sketch:
    """Random vectors Ω, their products A Ω, an orthonormal basis Q of these, and A Q.

    ``count`` vectors span a basis of ``rank`` columns, fewer when the matrix has no more to give.
    """

    def __init__(
        self, operator: LinearOperator, generator: torch.Generator, *, signs: bool = False
    ) -> None:
        self._operator, self._generator, self._signs = operator, generator, signs
        self.probes = self.images = self.basis = self.basis_images = _nothing(operator)
        self.num_products = 0
        self.broken = False
        self._scale = 0.0

    @property
    def count(self) -> int:
        """Number of random vectors."""
        return self.probes.shape[1]

    @property
    def rank(self) -> int:
        """Number of basis columns."""
        return self.basis.shape[1]

    @property
    def growing(self) -> bool:
        """True if every random vector so far brought a new direction."""
        return self.rank == self.count

    def grow(self, count: int) -> None:
        """Add random vectors: one product each, and one for each new direction."""
        if count < 1:
            return
        draw = rademacher if self._signs else gaussian
        fresh = draw(self._operator, count, generator=self._generator)
        images = (self._operator @ fresh).detach()
        self.num_products += count
        self.probes = torch.cat([self.probes, fresh], dim=1)
        self.images = torch.cat([self.images, images], dim=1)
        largest = float(images.norm(dim=0).max())
        if not math.isfinite(largest):
            self.broken = True
            return
        self._scale = max(self._scale, largest)
        directions = images
        for _ in range(2):
            directions = directions - self.basis @ (self.basis.T @ directions)
        left, sizes, _ = torch.linalg.svd(directions, full_matrices=False)
        limit = 16 * self.count * torch.finfo(images.dtype).eps * self._scale
        new = left[:, sizes > limit]
        # Small remainders lose their right angle to the basis; one more pass restores it.
        new = torch.linalg.qr(new - self.basis @ (self.basis.T @ new)).Q
        self.basis = torch.cat([self.basis, new], dim=1)
        self.basis_images = torch.cat([self.basis_images, (self._operator @ new).detach()], dim=1)
        self.num_products += new.shape[1]

    def small(self) -> Float[Tensor, "rank rank"]:
        """QᵀAQ in float64 on the CPU."""
        small = (self.basis.T @ self.basis_images).to(device="cpu", dtype=torch.float64)
        return (small + small.T) / 2

    def coefficients(self) -> Float[Tensor, "rank count"]:
        """QᵀΩ in float64 on the CPU."""
        return (self.basis.T @ self.probes).to(device="cpu", dtype=torch.float64)

    def triangle(self) -> Float[Tensor, "rank count"]:
        """R = QᵀAΩ in float64 on the CPU."""
        return (self.basis.T @ self.images).to(device="cpu", dtype=torch.float64)

    def left_out(self) -> Float[Tensor, "rank count"]:
        """For each random vector the direction of the basis that only it brought, of unit length.

        It is orthogonal to all columns of R but one: a column of R⁻ᵀ. Zero when the basis has fewer
        columns than there are vectors: the others span the same without any one of them.
        """
        triangle = self.triangle()
        if not self.growing:
            return torch.zeros_like(triangle)
        inverse, info = torch.linalg.inv_ex(triangle)
        if int(info) != 0:
            return torch.zeros_like(triangle)
        return inverse.T / inverse.T.norm(dim=0)


def _remainder(sketch: _Sketch, probes: Tensor, images: Tensor) -> Float[Tensor, "k"]:
    """Samples of the trace outside the sketch, from independent probes and their products."""
    inside = sketch.basis.T @ probes
    outside = probes - sketch.basis @ inside
    product = images - sketch.basis_images @ inside
    # A direction uniform in the remainder's space, scaled to its dimension: no error from the
    # length.
    size = outside.shape[0] - sketch.rank
    return size * _dots(outside, product) / _dots(outside, outside).clamp(min=1e-300)


def _with_remainder(sketch: _Sketch, samples: Float[Tensor, "k"]) -> tuple[float, float]:
    """Trace and its standard error from a sketch and samples of the remainder."""
    count = samples.numel()
    value = float(sketch.small().trace() + samples.mean())
    return value, float(samples.std() / math.sqrt(count)) if count > 1 else math.inf


def _dots(a: Tensor, b: Tensor) -> Float[Tensor, "k"]:
    return (a * b).sum(dim=0, dtype=torch.float64).cpu()


def _nothing(operator: LinearOperator) -> Tensor:
    return torch.empty(operator.shape[0], 0, dtype=operator.dtype, device=operator.device)


def _estimate(value: float, error: float, spent: int, count: int, status: str) -> Estimate:
    return Estimate(
        value=value, standard_error=error, num_products=spent, num_samples=count, status=status
    )
