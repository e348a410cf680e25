"""Factorisations of small dense matrices that do not give up at once and never hide what they did.

`cholesky` climbs a fixed ladder, each matrix of a batch for itself:

1. the matrix in ``precision`` (float64 unless asked otherwise);
2. the matrix in float64;
3. the matrix in float64 plus jitter * I, jitter = 1e-12, 1e-10, 1e-8, 1e-6, 1e-4 times its mean
   diagonal: status "jittered";
4. status "indefinite" (or "non-finite" for a matrix that is not finite), results NaN.

`eigh` climbs: ``precision``, float64, float64 on the CPU, status. `lu` serves indefinite matrices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_BLOCKED = 1_024
"""Rows from which on a float32 matrix is factorised by blocks on the CPU."""

_BLOCK = 192

JITTERS = (1e-12, 1e-10, 1e-8, 1e-6, 1e-4)

# From harmless to worst; the status of a batch is its worst.
STATUSES = ("ok", "jittered", "singular", "indefinite", "not-converged", "non-finite")


def worst(statuses: Sequence[str]) -> str:
    """The worst of several factorisation statuses, "ok" for none."""
    return max(statuses, key=STATUSES.index, default="ok")


@dataclass(frozen=True, kw_only=True)
class Factor:
    """Cholesky factors L Lᵀ of one matrix or a batch.

    Attributes:
        triangle: (..., n, n) lower triangles, float64 if any matrix of the batch needed it; NaN
            where the factorisation failed.
        jitter: (...) float64, what was added to each diagonal beyond the damping asked for.
        statuses: one a matrix, in order: "ok", "jittered", "indefinite" or "non-finite".
        dtype: Type of the matrix given, in which results are returned.
    """

    triangle: Float[Tensor, "*batch n n"]
    jitter: Float[Tensor, "*batch"]
    statuses: tuple[str, ...]
    dtype: torch.dtype

    @property
    def status(self) -> str:
        """The worst of the statuses."""
        return worst(self.statuses)

    def solve(self, b: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Solve M x = b for (..., n) vectors or (..., n, k) blocks; NaN where it failed."""
        vector = b.ndim == self.triangle.ndim - 1
        columns = (b.unsqueeze(-1) if vector else b).to(self.triangle.dtype)
        # Two triangular solves read the factor where it lies; `cholesky_solve` copies it first.
        half = torch.linalg.solve_triangular(self.triangle, columns, upper=False)
        solved = torch.linalg.solve_triangular(self.triangle.mT, half, upper=True).to(self.dtype)
        return solved.squeeze(-1) if vector else solved

    def inverse(self) -> Float[Tensor, "*batch n n"]:
        """The inverse written out: n³ more operations, then products instead of solves."""
        inverse = torch.cholesky_inverse(self.triangle)
        return ((inverse + inverse.mT) / 2).to(self.dtype)

    def logdet(self) -> Float[Tensor, "*batch"]:
        """Logarithm of the determinant of the matrix factorised, float64."""
        diagonal = self.triangle.diagonal(dim1=-2, dim2=-1).to(torch.float64)
        return 2 * diagonal.log().sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Spectral:
    """Eigendecompositions Q diag(values) Qᵀ of one symmetric matrix or a batch.

    Attributes:
        values: (..., n) ascending, float64 if any matrix needed it; NaN where it failed.
        vectors: (..., n, n) eigenvectors in columns.
        statuses: one a matrix: "ok", "not-converged" or "non-finite".
        dtype: Type of the matrix given.
    """

    values: Float[Tensor, "*batch n"]
    vectors: Float[Tensor, "*batch n n"]
    statuses: tuple[str, ...]
    dtype: torch.dtype

    @property
    def status(self) -> str:
        """The worst of the statuses."""
        return worst(self.statuses)


@dataclass(frozen=True, kw_only=True)
class LU:
    """LU factors of a square matrix that need not be symmetric or definite.

    Attributes:
        factors: (n, n) packed triangles in float64.
        pivots: (n,) row interchanges.
        status: "ok", "singular" (a pivot within rounding of zero) or "non-finite".
        dtype: Type of the matrix given, in which results are returned.
    """

    factors: Float[Tensor, "n n"]
    pivots: Int[Tensor, "n"]
    status: str
    dtype: torch.dtype

    def solve(self, b: Float[Tensor, "n *k"]) -> Float[Tensor, "n *k"]:
        """Solve M x = b for an (n,) vector or an (n, k) block; NaN unless the status is "ok"."""
        columns = b.reshape(b.shape[0], -1).to(self.factors.dtype)
        solved = torch.linalg.lu_solve(self.factors, self.pivots, columns).to(self.dtype)
        return (solved if self.status == "ok" else torch.full_like(solved, torch.nan)).reshape(
            b.shape
        )


def cholesky(
    matrix: Float[Tensor, "*batch n n"],
    *,
    damping: float | int | Float[Tensor, "*batch"] = 0.0,
    precision: torch.dtype = torch.float64,
) -> Factor:
    """Cholesky factors of matrix + damping I, up the ladder of this module.

    A matrix counts as positive definite when each pivot exceeds n roundings of its diagonal entry,
    so a singular matrix does not pass by luck.

    Args:
        matrix: symmetric matrices; only the lower triangles are read.
        damping: added to the diagonals, one for all or one each.
        precision: Type of the first attempt; torch.float32 is about twice as quick.

    Raises:
        ValueError: not square.
    """
    _check_square(matrix)
    shape, size = matrix.shape[:-2], matrix.shape[-1]
    stack = matrix.reshape(-1, size, size)
    nothing = torch.zeros(stack.shape[0], dtype=torch.float64, device=matrix.device)
    if precision != torch.float64:
        if len(stack) == 1 and size >= _BLOCKED and stack.device.type == "cpu":
            quick, good = _definite_by_blocks(stack[0].to(precision), float(damping))
        else:
            quick, good = _definite(_add_diagonal(stack, damping, shape, precision))
        if bool(good.all()):
            return Factor(
                triangle=quick.reshape(matrix.shape),
                jitter=nothing.reshape(shape),
                statuses=("ok",) * stack.shape[0],
                dtype=matrix.dtype,
            )
    damped = _add_diagonal(stack, damping, shape)
    finite = _finite(damped)
    scale = damped.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
    jitter = nothing
    # As it is, all together: nearly always enough, and then nothing is copied.
    triangle, done = _definite(damped)
    done &= finite
    if not bool(done.all()):
        triangle = torch.where(done.view(-1, 1, 1), triangle, torch.nan)
    for rung in JITTERS:
        todo = (finite & ~done).nonzero().squeeze(1)
        if todo.numel() == 0:
            break
        extra = rung * scale[todo]
        factor, good = _definite(_add_diagonal(damped[todo], extra, extra.shape))
        triangle[todo[good]] = factor[good]
        jitter[todo[good]] = extra[good]
        done[todo[good]] = True
    statuses = tuple(
        "non-finite" if not f else "indefinite" if not d else "jittered" if j else "ok"
        for f, d, j in zip(finite.tolist(), done.tolist(), jitter.tolist(), strict=True)
    )
    return Factor(
        triangle=triangle.reshape(matrix.shape),
        jitter=jitter.reshape(shape),
        statuses=statuses,
        dtype=matrix.dtype,
    )


def eigh(
    matrix: Float[Tensor, "*batch n n"], *, precision: torch.dtype = torch.float64
) -> Spectral:
    """Eigendecomposition of symmetric matrices that survives NaN and non-convergence.

    Each result is checked on a fixed vector: Q must be orthogonal on it and Q diag(values) Qᵀ must
    reproduce the matrix on it, to rounding. What fails is repeated in float64, then on the CPU.

    Args:
        matrix: symmetric matrices; the symmetric part is decomposed.
        precision: Type of the first attempt.

    Raises:
        ValueError: not square.
    """
    _check_square(matrix)
    size = matrix.shape[-1]
    stack = matrix.reshape(-1, size, size)
    together = _eigh_together(stack, precision)
    if together is not None:
        return Spectral(
            values=together[0].reshape(matrix.shape[:-1]),
            vectors=together[1].reshape(matrix.shape),
            statuses=("ok",) * len(stack),
            dtype=matrix.dtype,
        )
    results = [_eigh_one(one, precision) for one in stack]
    kind = torch.float64 if any(v.dtype == torch.float64 for v, _, _ in results) else precision
    empty = stack.new_zeros(0, size, dtype=kind)
    values = torch.stack([v.to(kind) for v, _, _ in results]) if results else empty
    vectors = torch.stack([q.to(kind) for _, q, _ in results]) if results else stack.to(kind)
    return Spectral(
        values=values.reshape(matrix.shape[:-1]),
        vectors=vectors.reshape(matrix.shape),
        statuses=tuple(status for _, _, status in results),
        dtype=matrix.dtype,
    )


def lu(matrix: Float[Tensor, "n n"]) -> LU:
    """LU factors of a square matrix with partial pivoting, in float64.

    Raises:
        ValueError: not square.
    """
    _check_square(matrix)
    values = matrix.to(torch.float64)
    if not bool(torch.isfinite(values).all()):
        status = "non-finite"
        values = torch.full_like(values, torch.nan)
        factors, pivots, _ = torch.linalg.lu_factor_ex(torch.nan_to_num(values))
    else:
        factors, pivots, _ = torch.linalg.lu_factor_ex(values)
        sizes = factors.diagonal().abs()
        limit = values.shape[0] * torch.finfo(torch.float64).eps * values.abs().max()
        status = "ok" if bool((sizes > limit).all()) else "singular"
    return LU(factors=factors, pivots=pivots, status=status, dtype=matrix.dtype)


def cholesky_many(
    matrices: Sequence[Float[Tensor, "_ _"]],
    *,
    damping: Sequence[float],
    precision: torch.dtype = torch.float64,
) -> list[Factor]:
    """Cholesky factors of several matrices; those of one shape in one batch.

    Args:
        matrices: square symmetric matrices of any sizes.
        damping: what to add to the diagonal of each.
        precision: Type of the first attempt.
    """

    def batch(stack: Tensor, indices: list[int]) -> list[Factor]:
        amounts = torch.tensor([damping[i] for i in indices], dtype=torch.float64)
        factor = cholesky(stack, damping=amounts.to(stack.device), precision=precision)
        return [
            replace(
                factor,
                triangle=factor.triangle[i],
                jitter=factor.jitter[i],
                statuses=(factor.statuses[i],),
            )
            for i in range(len(indices))
        ]

    return _by_shape(matrices, batch)


def eigh_many(
    matrices: Sequence[Float[Tensor, "_ _"]], *, precision: torch.dtype = torch.float64
) -> list[Spectral]:
    """Eigendecompositions of several matrices of any sizes, each up the ladder of this module."""
    return [eigh(matrix, precision=precision) for matrix in matrices]


def _by_shape(
    matrices: Sequence[Tensor], batch: Callable[[Tensor, list[int]], list[Factor]]
) -> list[Factor]:
    """Apply a batched factorisation to each group of equal shape, dtype and device."""
    groups: dict[tuple, list[int]] = {}
    for index, matrix in enumerate(matrices):
        groups.setdefault((matrix.shape, matrix.dtype, matrix.device), []).append(index)
    results: dict[int, Factor] = {}
    for indices in groups.values():
        stack = torch.stack([matrices[index] for index in indices])
        results.update(zip(indices, batch(stack, indices), strict=True))
    return [results[index] for index in range(len(matrices))]


def _check_square(matrix: Tensor) -> None:
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"expected square matrices (..., n, n); got shape {tuple(matrix.shape)}")


def _add_diagonal(
    stack: Tensor,
    amount: float | int | Tensor,
    shape: torch.Size,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """A copy of a stack of matrices with ``amount`` (one, or one each) added to the diagonals."""
    stack = stack.to(dtype, copy=True)
    if isinstance(amount, Tensor):
        amount = amount.to(stack).expand(shape).reshape(-1, 1)
    stack.diagonal(dim1=-2, dim2=-1).add_(amount)
    return stack


def _finite(stack: Tensor) -> Bool[Tensor, "count"]:
    """Tell which matrices of a stack have finite entries only."""
    # A finite sum has finite terms; only the others are looked at one by one.
    finite = torch.isfinite(stack.flatten(1).sum(1))
    if not bool(finite.all()):
        finite = torch.isfinite(stack).flatten(1).all(dim=1)
    return finite


def _definite(stack: Tensor) -> tuple[Tensor, Bool[Tensor, "count"]]:
    """Cholesky factors, and which of them are of numerically definite matrices."""
    triangle, info = torch.linalg.cholesky_ex(stack)
    pivots = triangle.diagonal(dim1=-2, dim2=-1).square()
    limit = stack.shape[-1] * torch.finfo(stack.dtype).eps
    large = pivots > limit * stack.diagonal(dim1=-2, dim2=-1)
    return triangle, (info == 0) & large.all(dim=-1) & torch.isfinite(pivots).all(dim=-1)


def _definite_by_blocks(
    matrix: Float[Tensor, "n n"], damping: float
) -> tuple[Float[Tensor, "1 n n"], Bool[Tensor, "1"]]:
    """`_definite` of one large matrix + damping I, left-looking: no copy of it is made.

    Nearly all the work is one product of matrices for each block of columns, which in float32
    takes two thirds of LAPACK's time; in float64 it would gain nothing.
    """
    size = len(matrix)
    triangle = torch.zeros_like(matrix)
    definite = True
    limit = size * torch.finfo(matrix.dtype).eps
    for start in range(0, size, _BLOCK):
        own, below = slice(start, start + _BLOCK), slice(start + _BLOCK, size)
        known = triangle[own, :start]
        columns = torch.addmm(matrix[start:, own], triangle[start:, :start], known.T, alpha=-1)
        square, rest = columns[:_BLOCK], columns[_BLOCK:]
        square.diagonal().add_(damping)
        corner, info = torch.linalg.cholesky_ex(square)
        pivots = corner.diagonal().square()
        large = (pivots > limit * (matrix.diagonal()[own] + damping)) & torch.isfinite(pivots)
        definite = definite and int(info) == 0 and bool(large.all())
        if not definite:
            break
        triangle[own, own] = corner
        if len(rest):
            triangle[below, own] = torch.linalg.solve_triangular(
                corner.mT, rest, upper=True, left=False
            )
    return triangle.unsqueeze(0), torch.tensor([definite])


def _eigh_together(stack: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor] | None:
    """All eigendecompositions by one call; None unless each of them holds at the first attempt."""
    if len(stack) < 2:
        return None
    exact = stack.to(torch.float64)
    exact = (exact + exact.mT) / 2
    if not bool(_finite(exact).all()):
        return None
    attempt = exact.to(precision)
    try:
        values, vectors = torch.linalg.eigh(attempt)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        return None
    return (values, vectors) if _verified(attempt, values, vectors) else None


def _eigh_one(matrix: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor, str]:
    """One eigendecomposition up the ladder."""
    exact = matrix.to(torch.float64)
    exact = (exact + exact.mT) / 2
    nothing = torch.full_like(exact[0] if exact.shape[0] else exact.reshape(-1), torch.nan)
    if not bool(torch.isfinite(exact).all()):
        return nothing, torch.full_like(exact, torch.nan), "non-finite"
    attempts = [exact.to(precision)]
    if precision != torch.float64:
        attempts.append(exact)
    if exact.device.type != "cpu":
        attempts.append(exact.cpu())
    for attempt in attempts:
        try:
            values, vectors = torch.linalg.eigh(attempt)
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            continue
        if _verified(attempt, values, vectors):
            return values.to(matrix.device), vectors.to(matrix.device), "ok"
    return nothing, torch.full_like(exact, torch.nan), "not-converged"


def _verified(matrix: Tensor, values: Tensor, vectors: Tensor) -> bool:
    """Tell whether eigendecompositions hold on one fixed vector each; costs two products."""
    size = values.shape[-1]
    if values.numel() == 0:
        return True
    # Any fixed vector without symmetry will do; a random one would need a generator.
    probe = torch.cos(torch.arange(1, size + 1, dtype=values.dtype, device=values.device) ** 2)
    turned = (vectors.mT @ probe).unsqueeze(-1)
    slip = ((vectors @ turned).squeeze(-1) - probe).norm(dim=-1) / probe.norm()
    image = (vectors @ (values.unsqueeze(-1) * turned)).squeeze(-1)
    error = (image - matrix @ probe).norm(dim=-1) / probe.norm()
    limit = 100 * size * torch.finfo(values.dtype).eps
    return bool(((slip <= limit) & (error <= limit * values.abs().amax(-1))).all())
