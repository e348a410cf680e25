"""Lanczos that keeps its basis orthogonal, finds repeated eigenvalues and restarts when full.

The basis holds vectors that were multiplied and a *frontier* of vectors that were not yet. Every
product is decomposed over the whole basis by two passes of Gram-Schmidt, and what remains joins the
frontier, so A v_i = sum_j v_j H_ji holds to rounding for each multiplied v_i. Three things follow:

- the residual of a Ritz pair is known without further products;
- a fresh random vector may join the frontier at any time, which is how further copies of a repeated
  eigenvalue are found (one Krylov sequence meets each eigenvalue once);
- H tells whether the operator was symmetric, and deterministic, in fact.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kobai.linalg.estimators.probes import gaussian
from kobai.linalg.operators.operator import LinearOperator


@dataclass(frozen=True, kw_only=True)
class Ritz:
    """All Ritz pairs of the present basis.

    Attributes:
        values: (j,) ascending, float64, CPU.
        coefficients: (j, j) columns: the Ritz vectors over the multiplied basis vectors.
        residuals: (j,) norms of A y - value y.
        frontier_shares: (f, j) component of each residual along each frontier vector.
        asymmetry: largest |H - Hᵀ|.
    """

    values: Float[Tensor, "j"]
    coefficients: Float[Tensor, "j j"]
    residuals: Float[Tensor, "j"]
    frontier_shares: Float[Tensor, "f j"]
    asymmetry: float


class KrylovBasis:
    """An orthonormal basis that grows by products and shrinks by thick restarts.

    Args:
        operator: the symmetric matrix.
        capacity: most vectors stored; memory is ``capacity * n`` numbers of the operator's dtype.
        generator: source of the random starting vectors.
    """

    def __init__(
        self, operator: LinearOperator, capacity: int, *, generator: torch.Generator
    ) -> None:
        self._operator = operator
        self._generator = generator
        size = operator.shape[0]
        self._rows = torch.empty(capacity, size, dtype=operator.dtype, device=operator.device)
        self._projected = torch.zeros(capacity, capacity, dtype=torch.float64)
        # Per multiplied vector: the norm of the part of its product that is in no stored vector.
        self._lost = torch.zeros(capacity, dtype=torch.float64)
        self._cut: list[int] = []
        self._epsilon = torch.finfo(operator.dtype).eps
        self.capacity = capacity
        self.count = 0
        self.multiplied: list[int] = []
        self.frontier: list[int] = []
        self.num_products = 0
        self.scale = 0.0

    @property
    def complete(self) -> bool:
        """True when the basis spans the whole space."""
        return self.count == self._operator.shape[0]

    @property
    def full(self) -> bool:
        """True when nothing more can be stored."""
        return self.count == self.capacity

    def inject(self, columns: Float[Tensor, "n b"]) -> list[int]:
        """Add what is new in given vectors to the frontier; returns the new positions."""
        before = self.count
        for row in columns.T.contiguous():
            self._append(row, None)
        return list(range(before, self.count))

    def inject_random(self, count: int) -> list[int]:
        """Add random directions to the frontier, as many as there is room for; their positions."""
        room = min(count, self.capacity - self.count)
        return self.inject(gaussian(self._operator, room, generator=self._generator))

    def expand(self, chosen: list[int]) -> bool:
        """Multiply the chosen frontier vectors; False when a product is not finite."""
        products = (self._operator @ self._rows[chosen].T).detach().T.contiguous()
        self.num_products += len(chosen)
        if not bool(torch.isfinite(products).all()):
            return False
        self.scale = max(self.scale, float(products.norm(dim=1).max()))
        self.frontier = [index for index in self.frontier if index not in chosen]
        self.multiplied.extend(chosen)
        for index, row in zip(chosen, products, strict=True):
            self._append(row, index)
            self._recover(index)
        return True

    def ritz(self) -> Ritz:
        """Rayleigh-Ritz over the multiplied vectors: small dense float64 work on the CPU."""
        among = self._projected[self.multiplied][:, self.multiplied]
        leaving = self._projected[self.frontier][:, self.multiplied]
        values, coefficients = torch.linalg.eigh((among + among.T) / 2)
        shares = leaving @ coefficients
        inside = among @ coefficients - coefficients * values
        lost = self._lost[self.multiplied] @ coefficients.abs()
        return Ritz(
            values=values,
            coefficients=coefficients,
            residuals=(inside.square().sum(dim=0) + shares.square().sum(dim=0)).sqrt() + lost,
            frontier_shares=shares,
            asymmetry=float((among - among.T).abs().max()) if among.numel() else 0.0,
        )

    def vectors(self, coefficients: Float[Tensor, "j k"]) -> Float[Tensor, "n k"]:
        """Combinations of the multiplied basis vectors, as columns."""
        weights = coefficients.to(device=self._rows.device, dtype=self._rows.dtype)
        return self._rows[self.multiplied].T @ weights

    def restart(self, ritz: Ritz, keep: list[int], wanted: list[int], frontier: int) -> None:
        """Forget all but some Ritz vectors and the directions into which their residuals point.

        Args:
            ritz: the present Ritz pairs.
            keep: the pairs to keep (thick restart).
            wanted: those of them whose residuals decide which directions matter.
            frontier: most frontier vectors kept. What is dropped still counts in the residuals.
        """
        coefficients = ritz.coefficients[:, keep]
        among = self._projected[self.multiplied][:, self.multiplied]
        turn = torch.linalg.svd(ritz.frontier_shares[:, wanted]).U
        shares = turn.T @ ritz.frontier_shares[:, keep]
        lost = self._lost[self.multiplied] @ coefficients.abs() + shares[frontier:].norm(dim=0)
        kept = self.vectors(coefficients).T
        directions = (
            turn[:, :frontier].T.to(device=self._rows.device, dtype=self._rows.dtype)
            @ self._rows[self.frontier]
        )
        count, total = len(keep), len(keep) + directions.shape[0]
        self._projected.zero_()
        self._projected[:count, :count] = coefficients.T @ among @ coefficients
        self._projected[count:total, :count] = shares[:frontier]
        self._lost.zero_()
        self._lost[:count] = lost
        self._rows[:count] = kept
        self._rows[count:total] = directions
        # What a column loses here comes back when the vectors it points to are multiplied.
        self._cut = list(range(count)) if self._cut or shares.shape[0] > frontier else []
        self.multiplied = list(range(count))
        self.frontier = list(range(count, total))
        self.count = total

    def aim(self, directions: Float[Tensor, "f b"]) -> list[int]:
        """Turn the frontier so that given combinations of it become single frontier vectors.

        Args:
            directions: orthonormal columns over the frontier vectors; b <= f.

        Returns:
            The positions of those b vectors.
        """
        count, width = directions.shape
        if width < count:
            turn = torch.linalg.qr(directions, mode="complete").Q
            # The decomposition may flip signs; the first columns span the directions all the same.
            rows = turn.T.to(device=self._rows.device, dtype=self._rows.dtype)
            self._rows[self.frontier] = rows @ self._rows[self.frontier]
            self._projected[self.frontier] = turn.T @ self._projected[self.frontier]
        return self.frontier[:width]

    def start_sequence(self) -> list[int]:
        """Turn or extend the frontier to a random direction outside the multiplied vectors.

        It need not avoid the old frontier: what hides there is to be found as well. Returns its
        position, or nothing when no direction is left.
        """
        column = gaussian(self._operator, 1, generator=self._generator)
        self.inject(column)
        if not self.frontier:
            return []
        weights = (self._rows[self.frontier] @ column).to(device="cpu", dtype=torch.float64)
        return self.aim(weights / weights.norm())

    def continue_sequence(self, position: int) -> tuple[float, float, list[int]]:
        """After ``position`` was multiplied, the next vector of its Krylov sequence.

        The sequence is that of the operator restricted to what was outside the multiplied vectors
        when it started.

        Returns:
            Diagonal and subdiagonal entry of the sequence's tridiagonal matrix, and the position of
            the next vector: none when the sequence ends.
        """
        diagonal = float(self._projected[position, position])
        weights = self._projected[self.frontier, position].unsqueeze(1)
        below = float(weights.norm())
        if below <= 32 * self._epsilon * self.scale:
            return diagonal, 0.0, []
        return diagonal, below, self.aim(weights / below)

    def _recover(self, index: int) -> None:
        """Complete columns of H that a restart cut short, from the new product by symmetry."""
        columns = self._cut
        if not columns:
            return
        known = self._projected[index, columns]
        found = self._projected[columns, index]
        self._projected[index, columns] = found
        squares = self._lost[columns].square() - found.square() + known.square()
        self._lost[columns] = squares.clamp(min=0.0).sqrt()

    def _expected(self, source: int, product: Tensor) -> tuple[list[int], Tensor] | None:
        """Where the product of a vector must point by symmetry, and how far: one pass saved.

        Its coefficients along multiplied vectors are known from their products. Usually all but one
        of them vanish; where many do not (after a restart), nothing would be saved: None.
        """
        known = self._projected[source, self.multiplied]
        large = (known.abs() > 8 * self._epsilon * self.scale).tolist()
        places = [i for i, flag in zip(self.multiplied, large, strict=True) if flag and i != source]
        if len(places) > max(2, self.count // 4):
            return None
        diagonal = torch.dot(self._rows[source], product).unsqueeze(0)
        return [*places, source], torch.cat(
            [self._projected[source, places].to(diagonal), diagonal]
        )

    def _append(self, row: Tensor, source: int | None) -> None:
        """Orthogonalise a vector; record its coefficients under ``source``; keep what is new."""
        length = float(row.norm())
        if length == 0.0:
            return
        basis = self._rows[: self.count]
        coefficients = torch.zeros(self.count, dtype=torch.float64)
        remaining, passes = length, 0
        if source is not None and (expected := self._expected(source, row)) is not None:
            places, values = expected
            row = torch.addmv(row, self._rows[places].T, values.to(row), alpha=-1)
            coefficients[places] = values.to(device="cpu", dtype=torch.float64)
            remaining, passes = float(row.norm()), 1
        # Two passes are enough in general; strong cancellation asks for more.
        while passes < 4:
            part = basis @ row
            row = torch.addmv(row, basis.T, part, alpha=-1)
            coefficients += part.to(device="cpu", dtype=torch.float64)
            shrunk = float(row.norm())
            enough = shrunk > 0.7 * remaining or shrunk <= 4 * self._epsilon * length
            remaining = shrunk
            passes += 1
            if passes >= 2 and enough:
                break
        # What is left of a vector of the basis is rounding: the space it spans is closed.
        scale = length if source is None else max(length, self.scale)
        new = remaining > 32 * self._epsilon * scale and not self.full and not self.complete
        if source is not None:
            self._projected[: self.count, source] = coefficients
            if new:
                self._projected[self.count, source] = remaining
            else:
                self._lost[source] = remaining
        if new:
            self._rows[self.count] = row / remaining
            self.frontier.append(self.count)
            self.count += 1


def error_bounds(values: Float[Tensor, "j"], residuals: Float[Tensor, "j"]) -> Float[Tensor, "j"]:
    """Bound on the error of each Ritz value: min(residual, residual² / gap).

    The first holds always. The second [Kato 1949, Temple 1928; Parlett, The Symmetric Eigenvalue
    Problem, §10-11] needs the distance to the other eigenvalues, taken here from the other Ritz
    values less their own bounds.
    """
    if values.numel() < 2:
        return residuals
    distance = (values[:, None] - values[None, :]).abs()
    distance.fill_diagonal_(math.inf)
    bounds = residuals
    # Each round knows the neighbours better, and so the gaps.
    for _ in range(3):
        gap = (distance - bounds[None, :]).min(dim=1).values
        sharp = torch.where(gap > 0, residuals.square() / gap.clamp(min=1e-300), math.inf)
        bounds = torch.minimum(bounds, sharp)
    return bounds


def largest_hidden_weight(diagonal: list[float], below: list[float], value: float) -> float:
    """The most weight an eigenvalue can have in the vector that started a Krylov sequence.

    It is the Christoffel function of the sequence's quadrature, 1 / sum_j p_j(value)² with p_j the
    orthonormal polynomials of the starting vector's spectral measure [Szegő, Orthogonal
    Polynomials, §3.4; Golub & Meurant 2010]: steep once ``value`` lies outside what the sequence
    has seen.

    Args:
        diagonal: diagonal of the sequence's tridiagonal matrix.
        below: its subdiagonal, the coupling to the next vector included.
        value: the eigenvalue asked about.
    """
    previous, current, total = 0.0, 1.0, 1.0
    for j, centre in enumerate(diagonal[: len(below)]):
        back = below[j - 1] * previous if j else 0.0
        if below[j] == 0.0:
            return 0.0
        previous, current = current, ((value - centre) * current - back) / below[j]
        total += current * current
        if not math.isfinite(total):
            return 0.0
    return 1.0 / total
