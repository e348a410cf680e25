"""Extreme eigenvalues of a symmetric operator, with residuals, on the operator's own device."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.lanczos import KrylovBasis, Ritz, error_bounds
from kobai.linalg.operator import LinearOperator

Which = Literal["largest", "smallest", "both", "magnitude"]
EigenMethod = Literal["auto", "lanczos", "dense"]


@dataclass(frozen=True, kw_only=True)
class Eigen:
    """Some eigenpairs of a symmetric operator.

    Attributes:
        values: (k,) ascending, float64, CPU.
        residuals: (k,) norms of A y - value y of the unit Ritz vectors y: each interval
            value ± residual holds an eigenvalue of A.
        errors: (k,) the bounds on the values that the stopping rule used, min(residual,
            residual² / gap).
        vectors: (n, k) columns in the operator's dtype, on its device; None unless asked for.
        status: "converged"; "max-products" (the budget ended first: values and residuals are those
            reached); "non-finite" (a product was not finite); "not-symmetric" (the products contradict
            symmetry: the operator is not symmetric, or not deterministic).
        method: "lanczos", "lobpcg" or "dense": what computed them.
        num_products: products spent.
    """

    values: Float[Tensor, "k"]
    residuals: Float[Tensor, "k"]
    errors: Float[Tensor, "k"]
    vectors: Float[Tensor, "n k"] | None
    status: str
    method: str
    num_products: int


def eigenvalues(
    operator: LinearOperator,
    k: int = 10,
    *,
    which: Which = "largest",
    tol: float = 1e-3,
    max_products: int | None = None,
    max_basis: int | None = None,
    block_size: int = 1,
    repeated: bool = True,
    vectors: bool = False,
    method: EigenMethod = "auto",
    start: Float[Tensor, "n *j"] | None = None,
    generator: torch.Generator,
) -> Eigen:
    """The k extreme eigenvalues of a symmetric operator.

    Args:
        operator: the symmetric matrix.
        k: how many eigenvalues, at most n.
        which: "largest"; "smallest" (most negative first); "both" ends (ceil(k/2) of them the largest);
            "magnitude" (largest absolute values).
        tol: relative accuracy. Each value θ is bounded to tol * |θ|, or to tol² * ‖A‖ where θ is
            smaller than tol * ‖A‖ (and never below rounding).
        max_products: the budget; default 50 k + 500.
        max_basis: most vectors held (memory: max_basis * n numbers); default max(4 k, k + 60).
        block_size: products made together. 1 needs the fewest; more is quicker where columns of a
            block are cheaper than single products, or when eigenvalues come in groups.
        repeated: look for further copies of repeated eigenvalues with fresh random vectors, until
            one brings nothing new.
        vectors: also return the eigenvectors; their own accuracy is residual / gap.
        method: "lanczos"; "dense" (n products, all eigenvalues); "auto" takes "dense" where n <=
            max(32, 3 k).
        start: (n,) or (n, j) vectors to start from, such as the eigenvectors at a nearby point.
        generator: source of the random starting vectors.

    Raises:
        ValueError: an operator not declared symmetric, k outside 1..n, a basis too small for k, an
            unknown name, a tolerance outside (0, 1).
    """
    size = operator.shape[0]
    if not operator.symmetric:
        raise ValueError(f"eigenvalues needs an operator declared symmetric; got {operator!r}")
    if not 1 <= k <= size:
        raise ValueError(f"k counts eigenvalues of a {size} x {size} matrix; got {k}")
    if which not in ("largest", "smallest", "both", "magnitude"):
        raise ValueError(f"which is largest, smallest, both or magnitude; got {which!r}")
    if not 0 < tol < 1:
        raise ValueError(f"tol is a relative accuracy between 0 and 1; got {tol}")
    if block_size < 1:
        raise ValueError(f"block_size is at least 1; got {block_size}")
    budget = 50 * k + 500 if max_products is None else max_products
    if budget < 1:
        raise ValueError(f"max_products is at least 1; got {max_products}")
    if method == "auto":
        method = "dense" if size <= max(32, 3 * k) and size <= budget else "lanczos"
    if method == "dense":
        return _dense(operator, k, which, vectors)
    capacity = max(4 * k, k + 60) if max_basis is None else max_basis
    capacity = min(capacity, size)
    if capacity < min(size, k + 2 * block_size + 2):
        raise ValueError(
            f"max_basis {capacity} cannot hold {k} eigenvectors and room to improve them; "
            f"give at least {k + 2 * block_size + 2}"
        )
    search = _Search(operator, k, which, tol, capacity, block_size, generator)
    if start is not None:
        if start.shape[0] != size or start.dtype != operator.dtype:
            raise ValueError(
                f"start is ({size},) or ({size}, j) in {operator.dtype}; got {start.shape}"
            )
        search.basis.inject(start.reshape(size, -1)[:, : capacity // 2])
    return search.run(budget, repeated, vectors)


def wanted_indices(values: Float[Tensor, "j"], k: int, which: str) -> list[int]:
    """Positions of the wanted ones among ascending values; fewer than k where there are fewer."""
    count = values.numel()
    k = min(k, count)
    if which == "largest":
        return list(range(count - k, count))
    if which == "smallest":
        return list(range(k))
    if which == "both":
        low = k // 2
        return [*range(low), *range(count - (k - low), count)]
    return sorted(values.abs().argsort(descending=True)[:k].tolist())


class _Search:
    """One Lanczos search: grow until the wanted pairs are accurate, then look for missed copies."""

    def __init__(
        self,
        operator: LinearOperator,
        k: int,
        which: str,
        tol: float,
        capacity: int,
        block_size: int,
        generator: torch.Generator,
    ) -> None:
        self.basis = KrylovBasis(operator, capacity, generator=generator)
        self.size = operator.shape[0]
        self.epsilon = torch.finfo(operator.dtype).eps
        self.k, self.which, self.tol, self.block_size = k, which, tol, block_size

    def run(self, budget: int, repeated: bool, vectors: bool) -> Eigen:
        """Alternate between refining and probing until nothing is left to do."""
        if not self.basis.frontier:
            self.basis.inject_random(self.block_size)
        probes = 1
        status = self._refine(budget)
        while status == "converged" and repeated and not self.basis.complete:
            status = self._probe(budget, probes)
            probes = min(2 * probes, 16)
            if status != "found":
                break
            status = self._refine(budget)
        return self._result(status, vectors)

    def _refine(self, budget: int) -> str:
        """Expand what the wanted residuals need most until all wanted pairs are accurate."""
        while True:
            ritz = self.basis.ritz()
            wanted = wanted_indices(ritz.values, self.k, self.which)
            if ritz.asymmetry > math.sqrt(self.epsilon) * max(self.basis.scale, 1e-300):
                return "not-symmetric"
            open_pairs = self._unconverged(ritz, wanted)
            if len(wanted) == self.k and not open_pairs:
                return "converged"
            if not self.basis.frontier and self.basis.inject_random(self.block_size) == 0:
                return "converged"
            if self.basis.num_products >= budget:
                return "max-products"
            chosen = self._most_needed(ritz, open_pairs, budget)
            if not self._expand(chosen):
                return "non-finite"

    def _probe(self, budget: int, count: int) -> str:
        """Run Krylov sequences from fresh random vectors; "found" when the wanted values move."""
        ritz = self.basis.ritz()
        wanted = wanted_indices(ritz.values, self.k, self.which)
        before = ritz.values[wanted]
        margin = 2 * self._thresholds(ritz, wanted)
        self._make_room(count)
        old = set(self.basis.frontier)
        self.basis.inject_random(count)
        current = [index for index in self.basis.frontier if index not in old]
        # A copy hides in a random vector with weight about 1/sqrt(n); each step lifts it by a factor.
        for _ in range(math.ceil(math.log(self.size) / 2) + 1):
            if not current:
                return "converged"
            if self.basis.num_products + len(current) > budget:
                return "max-products"
            moved = self._make_room(len(current))
            current = [moved.get(index, index) for index in current]
            old = set(self.basis.frontier)
            if not self.basis.expand(current):
                return "non-finite"
            current = [index for index in self.basis.frontier if index not in old]
            ritz = self.basis.ritz()
            now = ritz.values[wanted_indices(ritz.values, self.k, self.which)]
            if bool(((now - before).abs() > margin).any()):
                return "found"
        return "converged"

    def _expand(self, chosen: list[int]) -> bool:
        """Expand, after a restart where the basis is full."""
        moved = self._make_room(len(chosen))
        return self.basis.expand([moved.get(index, index) for index in chosen])

    def _make_room(self, count: int) -> dict[int, int]:
        """Restart when ``count`` more vectors do not fit; keeps the wanted and the next best pairs."""
        basis = self.basis
        if basis.count + count <= min(basis.capacity, self.size):
            return {}
        if basis.capacity >= self.size:
            return {}
        ritz = basis.ritz()
        room = basis.capacity - len(basis.frontier) - count
        keep = max(self.k, min(self.k + (room - self.k) // 2, ritz.values.numel() - 1))
        return basis.restart(ritz, wanted_indices(ritz.values, keep, self.which))

    def _most_needed(self, ritz: Ritz, open_pairs: list[int], budget: int) -> list[int]:
        """The frontier vectors that carry most of the residuals of the pairs still inaccurate."""
        frontier = self.basis.frontier
        count = min(self.block_size, len(frontier), budget - self.basis.num_products)
        if not open_pairs or ritz.values.numel() == 0:
            return frontier[-count:]
        shares = ritz.frontier_shares[:, open_pairs].abs().max(dim=1).values
        order = shares.argsort(descending=True).tolist()
        return [frontier[position] for position in order[:count]]

    def _thresholds(self, ritz: Ritz, wanted: list[int]) -> Tensor:
        norm = float(ritz.values.abs().max())
        relative = torch.maximum(ritz.values[wanted].abs(), torch.tensor(self.tol * norm))
        return (self.tol * relative).clamp(min=64 * self.epsilon * norm)

    def _unconverged(self, ritz: Ritz, wanted: list[int]) -> list[int]:
        if not wanted:
            return []
        errors = error_bounds(ritz)[wanted]
        late = errors > self._thresholds(ritz, wanted)
        return [index for index, flag in zip(wanted, late.tolist(), strict=True) if flag]

    def _result(self, status: str, vectors: bool) -> Eigen:
        ritz = self.basis.ritz()
        wanted = wanted_indices(ritz.values, self.k, self.which)
        return Eigen(
            values=ritz.values[wanted],
            residuals=ritz.residuals[wanted],
            errors=error_bounds(ritz)[wanted],
            vectors=self.basis.vectors(ritz.coefficients[:, wanted]) if vectors else None,
            status=status,
            method="lanczos",
            num_products=self.basis.num_products,
        )


def _dense(operator: LinearOperator, k: int, which: str, vectors: bool) -> Eigen:
    """All eigenvalues of the matrix written out."""
    matrix = operator.dense().detach().to(torch.float64)
    size = matrix.shape[0]
    if not bool(torch.isfinite(matrix).all()):
        nothing = torch.full((k,), math.nan, dtype=torch.float64)
        return Eigen(
            values=nothing,
            residuals=nothing,
            errors=nothing,
            vectors=None,
            status="non-finite",
            method="dense",
            num_products=size,
        )
    asymmetry = float((matrix - matrix.T).abs().max())
    limit = math.sqrt(torch.finfo(operator.dtype).eps) * float(matrix.abs().max())
    values, columns = torch.linalg.eigh((matrix + matrix.T) / 2)
    wanted = wanted_indices(values.cpu(), k, which)
    values, columns = values[wanted], columns[:, wanted]
    residuals = (matrix @ columns - columns * values).norm(dim=0).cpu()
    return Eigen(
        values=values.cpu(),
        residuals=residuals,
        errors=residuals,
        vectors=columns.to(operator.dtype) if vectors else None,
        status="converged" if asymmetry <= limit else "not-symmetric",
        method="dense",
        num_products=size,
    )
