"""Extreme eigenvalues of a symmetric operator, with residuals, on the operator's own device."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.operators.operator import LinearOperator
from kobai.linalg.spectra.lanczos import KrylovBasis, Ritz, error_bounds, largest_hidden_weight
from kobai.linalg.spectra.lobpcg import lobpcg
from kobai.linalg.spectra.spectrum import Eigen, Which, thresholds, wanted_indices

# A probe may stop once it would have missed a further copy with this probability only.
_CERTAIN = 0.01
# Up to this size the whole space fits into little memory, and restarts would only cost products.
_SMALL = 1024


@dataclass(frozen=True, kw_only=True)
class Lanczos:
    """Lanczos with full re-orthogonalisation and thick restarts.

    One Krylov sequence meets each eigenvalue once, however often it is repeated. Further copies are
    found by probes: Krylov sequences from fresh random vectors orthogonal to all found so far.

    Attributes:
        max_basis: most vectors held (memory: max_basis * n numbers of the operator's dtype);
            default n where n <= 1024, otherwise max(4 k, k + 60).
        block_size: products made together. 1 needs the fewest; more is quicker where columns of a
            block are cheaper than single products.
        probe: how long to look for copies. "quick": at most log(n) / 2 + 1 products, enough for
            copies of values that stand apart; once a copy has shown up, "certain". "certain": until
            a further copy would have been missed with probability 0.01, or the probe has cost as
            many products as the search before it, which it does where the innermost wanted value
            is one of a crowd. "none". `Eigen.chance_missed` says what was reached.
    """

    max_basis: int | None = None
    block_size: int = 1
    probe: Literal["none", "quick", "certain"] = "quick"


@dataclass(frozen=True, kw_only=True)
class Lobpcg:
    """Locally optimal block preconditioned conjugate gradients [Knyazev 2001].

    Holds 6 k vectors whatever the number of steps; pays with more products than `Lanczos` unless a
    good preconditioner is at hand. Only "largest" and "smallest".

    Attributes:
        preconditioner: approximate inverse (for "smallest"), symmetric positive definite.
    """

    preconditioner: LinearOperator | None = None


Method = Literal["auto", "lanczos", "lobpcg", "dense"] | Lanczos | Lobpcg


def eigenvalues(
    operator: LinearOperator,
    k: int = 10,
    *,
    which: Which = "largest",
    tol: float = 1e-3,
    max_products: int | None = None,
    vectors: bool = False,
    method: Method = "auto",
    start: Float[Tensor, "n *j"] | None = None,
    generator: torch.Generator,
) -> Eigen:
    """The k extreme eigenvalues of a symmetric operator, repeated ones as often as they occur.

    Args:
        operator: the symmetric matrix.
        k: how many eigenvalues, at most n.
        which: "largest"; "smallest" (most negative first); "both" ends (ceil(k/2) of them the
            largest); "magnitude" (largest absolute values).
        tol: relative accuracy. Each value θ is bounded to tol * |θ|, or to tol² * ‖A‖ where θ is
            smaller than tol * ‖A‖, and never below rounding.
        max_products: the budget; default 50 k + 500.
        vectors: also return the eigenvectors; their own error is about residual / gap.
        method: "lanczos" or `Lanczos` with its options; "lobpcg" or `Lobpcg`; "dense" (n products,
            all eigenvalues); "auto" is "dense" where n <= max(32, 3 k), otherwise "lanczos".
        start: (n,) or (n, j) vectors to start from, such as the eigenvectors at a nearby point;
            j at most half the basis.
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
    budget = 50 * k + 500 if max_products is None else max_products
    if budget < 1:
        raise ValueError(f"max_products is at least 1; got {max_products}")
    if start is not None and (start.shape[0] != size or start.dtype != operator.dtype):
        raise ValueError(
            f"start is ({size},) or ({size}, j) in {operator.dtype}; got {tuple(start.shape)} "
            f"in {start.dtype}"
        )
    started = None if start is None else start.reshape(size, -1)
    if method == "auto":
        small = size <= max(32, 3 * k) and size <= budget
        method = "dense" if small else "lanczos"
    if method == "dense":
        return _dense(operator, k, which, vectors)
    if method == "lobpcg":
        method = Lobpcg()
    if isinstance(method, Lobpcg):
        return lobpcg(
            operator,
            k,
            which=which,
            tol=tol,
            max_products=budget,
            vectors=vectors,
            start=started,
            preconditioner=method.preconditioner,
            generator=generator,
        )
    if method == "lanczos":
        method = Lanczos()
    if not isinstance(method, Lanczos):
        raise ValueError(f"method is auto, lanczos, lobpcg, dense or their options; got {method!r}")
    return _Search(operator, k, which, tol, method, budget, generator).run(started, vectors)


class _Search:
    """One Lanczos search: refine until the wanted pairs are accurate, then look for copies."""

    def __init__(
        self,
        operator: LinearOperator,
        k: int,
        which: Which,
        tol: float,
        options: Lanczos,
        budget: int,
        generator: torch.Generator,
    ) -> None:
        size = operator.shape[0]
        self.block_size = options.block_size
        self.probe = options.probe
        if self.probe not in ("none", "quick", "certain"):
            raise ValueError(f"probe is none, quick or certain; got {self.probe!r}")
        if self.block_size < 1:
            raise ValueError(f"block_size is at least 1; got {self.block_size}")
        self.probe_steps = math.ceil(math.log(size) / 2) + 1
        self.max_frontier = max(4, 2 * self.block_size)
        need = min(size, k + 1 + self.max_frontier + max(self.probe_steps + 2, 2 * self.block_size))
        usual = size if size <= _SMALL else max(4 * k, k + 60)
        capacity = usual if options.max_basis is None else options.max_basis
        capacity = min(size, max(capacity, need) if options.max_basis is None else capacity)
        if capacity < need:
            raise ValueError(
                f"max_basis {options.max_basis} cannot hold {k} eigenvectors and room to improve "
                f"them; give at least {need}"
            )
        self.basis = KrylovBasis(operator, capacity, generator=generator)
        self.size, self.budget = size, budget
        self.epsilon = torch.finfo(operator.dtype).eps
        self.chance_missed = math.nan
        self.k, self.tol = k, tol
        self.which: Which = which

    def run(self, start: Tensor | None, vectors: bool) -> Eigen:
        """Alternate between refining and probing until nothing is left to find."""
        status = "converged" if start is None else self._begin(start)
        if not self.basis.frontier:
            self.basis.inject_random(self.block_size)
        status = self._refine() if status == "converged" else status
        while status == "converged" and self.probe != "none":
            status = self._probe()
            if status != "found":
                break
            self.probe = "certain"
            status = self._refine()
        ritz = self.basis.ritz()
        wanted = self._wanted(ritz)
        return Eigen(
            values=ritz.values[wanted],
            residuals=ritz.residuals[wanted],
            errors=error_bounds(ritz.values, ritz.residuals)[wanted],
            chance_missed=self.chance_missed,
            vectors=self.basis.vectors(ritz.coefficients[:, wanted]) if vectors else None,
            status=status,
            method="lanczos",
            num_products=self.basis.num_products,
        )

    def _begin(self, start: Tensor) -> str:
        """Multiply the vectors given, all of them: one left aside would hide from the search."""
        # Their products need as much room again.
        if 2 * start.shape[1] > self.basis.capacity:
            raise ValueError(
                f"a basis of {self.basis.capacity} vectors takes at most half as many to start "
                f"from; got {start.shape[1]}"
            )
        waiting = self.basis.inject(start)
        while waiting:
            chosen, waiting = waiting[: self.block_size], waiting[self.block_size :]
            if self.basis.num_products + len(chosen) > self.budget:
                return "max-products"
            if not self.basis.expand(chosen):
                return "non-finite"
        return "converged"

    def _refine(self) -> str:
        """Expand what the wanted residuals need most until all wanted pairs are accurate."""
        basis = self.basis
        while True:
            ritz = basis.ritz()
            if ritz.asymmetry > math.sqrt(self.epsilon) * basis.scale:
                return "not-symmetric"
            wanted = self._wanted(ritz)
            errors = error_bounds(ritz.values, ritz.residuals)[wanted]
            late = errors > thresholds(ritz.values, wanted, self.tol, self.epsilon)
            open_pairs = [index for index, flag in zip(wanted, late.tolist(), strict=True) if flag]
            if len(wanted) == self.k and not open_pairs:
                return "converged"
            if basis.num_products >= self.budget:
                return "max-products"
            if self._make_room(self.block_size, ritz):
                continue
            if not basis.frontier and not basis.inject_random(self.block_size):
                return "converged"
            chosen = self._most_needed(ritz, open_pairs)
            # Looking costs j³: with a large basis j, go on for a while between looks.
            for _ in range(max(1, basis.count // 100)):
                count = basis.count
                if not basis.expand(chosen):
                    return "non-finite"
                chosen = list(range(count, basis.count))
                if (
                    not chosen
                    or basis.count + len(chosen) > basis.capacity
                    or basis.num_products + len(chosen) > self.budget
                ):
                    break

    def _probe(self) -> str:
        """Run a Krylov sequence from a fresh random vector; "found" when the wanted values move."""
        basis = self.basis
        before = basis.ritz()
        if before.values.numel() == self.size:
            self.chance_missed = 0.0
            return "converged"
        steps = self.probe_steps
        if self.probe == "certain":
            steps = max(steps, basis.num_products)
        if self._make_room(self.probe_steps + 2, before):
            before = basis.ritz()
        wanted = self._wanted(before)
        margin = 2 * thresholds(before.values, wanted, self.tol, self.epsilon)
        cuts = self._cuts(before.values[wanted])
        self.chance_missed = 1.0
        diagonal: list[float] = []
        below: list[float] = []
        current = basis.start_sequence()
        for _ in range(steps):
            if not current:
                self.chance_missed = 0.0
                return "converged"
            if basis.num_products >= self.budget:
                return "max-products"
            if basis.full and not basis.complete:
                return "converged"
            if not basis.expand(current):
                return "non-finite"
            centre, coupling, current = basis.continue_sequence(current[0])
            diagonal.append(centre)
            below.append(coupling)
            ritz = basis.ritz()
            now = ritz.values[self._wanted(ritz)]
            if bool(((now - before.values[wanted]).abs() > margin).any()):
                return "found"
            # A missed eigenvector of value v would have the weight chi²/n in the random vector.
            weights = [largest_hidden_weight(diagonal, below, cut) for cut in cuts]
            chances = [math.erf(math.sqrt(self.size * weight / 2)) for weight in weights]
            self.chance_missed = min(1.0, sum(chances))
            if self.chance_missed <= _CERTAIN:
                return "converged"
        return "converged"

    def _wanted(self, ritz: Ritz) -> list[int]:
        return wanted_indices(ritz.values, self.k, self.which)

    def _cuts(self, values: Tensor) -> list[float]:
        """The values beyond which a missed eigenvalue would belong to the wanted ones."""
        if self.which == "largest":
            return [float(values[0])]
        if self.which == "smallest":
            return [float(values[-1])]
        if self.which == "magnitude":
            size = float(values.abs().min())
            return [-size, size]
        low = self.k // 2
        return [float(values[low]), *([float(values[low - 1])] if low else [])]

    def _make_room(self, count: int, ritz: Ritz) -> bool:
        """Restart when ``count`` more vectors do not fit; True when it did."""
        basis = self.basis
        if basis.capacity >= self.size or basis.count + count <= basis.capacity:
            return False
        room = basis.capacity - self.max_frontier - count
        keep = min(self.k + (room - self.k) // 2, ritz.values.numel() - 1)
        basis.restart(
            ritz,
            wanted_indices(ritz.values, max(keep, self.k), self.which),
            self._wanted(ritz),
            self.max_frontier,
        )
        return True

    def _most_needed(self, ritz: Ritz, open_pairs: list[int]) -> list[int]:
        """Frontier vectors, turned to where most of the open pairs' residuals point."""
        frontier = self.basis.frontier
        count = min(self.block_size, len(frontier), self.budget - self.basis.num_products)
        if count == len(frontier) or not open_pairs:
            return frontier[-count:]
        left = torch.linalg.svd(ritz.frontier_shares[:, open_pairs]).U
        return self.basis.aim(left[:, :count])


def _dense(operator: LinearOperator, k: int, which: Which, vectors: bool) -> Eigen:
    """All eigenvalues of the matrix written out, in float64."""
    matrix = operator.dense().detach().to(torch.float64)
    size = matrix.shape[0]
    if not bool(torch.isfinite(matrix).all()):
        nothing = torch.full((k,), math.nan, dtype=torch.float64)
        return Eigen(
            values=nothing,
            residuals=nothing,
            errors=nothing,
            chance_missed=math.nan,
            vectors=None,
            status="non-finite",
            method="dense",
            num_products=size,
        )
    asymmetry = float((matrix - matrix.T).abs().max())
    limit = math.sqrt(torch.finfo(operator.dtype).eps) * float(matrix.norm())
    values, columns = torch.linalg.eigh((matrix + matrix.T) / 2)
    wanted = wanted_indices(values.cpu(), k, which)
    values, columns = values[wanted], columns[:, wanted]
    residuals = (matrix @ columns - columns * values).norm(dim=0).cpu()
    return Eigen(
        values=values.cpu(),
        residuals=residuals,
        errors=residuals,
        chance_missed=0.0,
        vectors=columns.to(operator.dtype) if vectors else None,
        status="converged" if asymmetry <= limit else "not-symmetric",
        method="dense",
        num_products=size,
    )
