"""Spectral density by stochastic Lanczos quadrature, all probes advanced together.

Lanczos from a random unit vector z turns its spectral measure sum_i (z·u_i)² delta(x - λ_i) into a
Gauss quadrature of m nodes and weights, exact for polynomials up to degree 2 m - 1 [Golub &
Meurant 2010]. Its mean over z uniform on the sphere is the spectral density (1/n) sum_i delta(x -
λ_i) [Lin, Saad & Yang 2016; Ubaru, Chen & Saad 2017; Ghorbani et al. 2019].
"""

import math

import torch
from torch import Tensor

from kobai.linalg.estimators.probes import sphere
from kobai.linalg.operators.operator import LinearOperator
from kobai.linalg.spectra.quadrature import Density

_STEPS_AT_ONCE = 5
_FIRST_PROBES = 4
# Steps that are always made orthogonal: they are cheap, and show an operator that is not symmetric.
_WATCHED_STEPS = 4


def density(
    operator: LinearOperator,
    *,
    num_probes: int = 10,
    num_steps: int = 50,
    tolerance: float = 0.0,
    max_bytes: int = 2**31,
    generator: torch.Generator,
) -> Density:
    """Nodes and weights of the spectral density of a symmetric operator.

    Without ``tolerance`` it costs num_probes * num_steps products, in blocks of num_probes
    columns. With it, the first four probes run until five further steps change the smoothed
    density (the default `Density.curve`, smoothed for ``num_steps`` nodes) by less than half of
    ``tolerance``, and as many more probes follow as bring its standard error below ``tolerance``,
    both integrated over the
    eigenvalues: num_probes and num_steps are then upper bounds.

    Every probe keeps its Lanczos vectors orthogonal to half of the precision, which leaves the
    quadrature accurate to all of it [Simon 1984, The Lanczos algorithm with partial
    reorthogonalization]: Gram-Schmidt over all of them runs where a recurrence says that it must.
    They take num_probes * num_steps * n numbers of memory; where that exceeds ``max_bytes``, probes
    run in groups.

    Args:
        operator: the symmetric matrix.
        num_probes: random vectors.
        num_steps: Lanczos steps, the number of nodes of each probe; the resolution is about the
            spectrum's width / num_steps.
        tolerance: error to stop at, an L1 distance between densities (0 to 2); 0: no early stop.
        max_bytes: bound on the memory for the Lanczos vectors.
        generator: source of the probes.

    Raises:
        ValueError: an operator not declared symmetric, counts below 1, a negative tolerance, a
            memory bound below one probe.
    """
    size = operator.shape[0]
    if not operator.symmetric:
        raise ValueError(f"a spectral density needs a symmetric operator; got {operator!r}")
    if num_probes < 1 or num_steps < 1:
        raise ValueError(f"at least 1 probe and 1 step; got {num_probes} and {num_steps}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is an L1 distance, at least 0; got {tolerance}")
    num_steps = min(num_steps, size)
    # Half the widest distance of nodes, which are about pi/2 * range/m apart: no comb remains.
    resolution = 0.8 / max(num_steps - 1, 1)
    one = num_steps * size * torch.finfo(operator.dtype).bits // 8
    if max_bytes < one:
        raise ValueError(
            f"{num_steps} Lanczos vectors of length {size} take {one} bytes, more than "
            f"max_bytes={max_bytes}: allow more memory or fewer steps"
        )
    together = min(num_probes, max_bytes // one)
    runs: list[_Probes] = []
    done, status = 0, "finished"
    if tolerance > 0:
        first = _Probes(operator, min(_FIRST_PROBES, together), num_steps, generator)
        num_steps = first.run_until_stable(tolerance / 2, resolution)
        runs.append(first)
        done = first.count
        so_far = _gather(runs, resolution, status)
        error = so_far.curve().integrated_error()
        needed = num_probes if math.isinf(error) else math.ceil(done * (error / tolerance) ** 2)
        num_probes = min(num_probes, max(done, needed))
    while done < num_probes:
        run = _Probes(operator, min(together, num_probes - done), num_steps, generator)
        run.run(num_steps)
        runs.append(run)
        done += run.count
    if any(run.broken for run in runs):
        status = "non-finite"
    elif any(run.asymmetric for run in runs):
        status = "not-symmetric"
    result = _gather(runs, resolution, status)
    if tolerance > 0 and status == "finished":
        curve = result.curve()
        stable = runs[0].stable and curve.integrated_error() <= tolerance
        result = _gather(runs, resolution, "converged" if stable else "max-products")
    return result


def _gather(runs: "list[_Probes]", resolution: float, status: str) -> Density:
    """One density from several groups of probes."""
    rules = [run.quadrature() for run in runs]
    width = max(nodes.shape[1] for nodes, _ in rules)
    # A rule that ended early is padded with nodes of no weight.
    nodes = torch.cat([torch.nn.functional.pad(n, (0, width - n.shape[1])) for n, _ in rules])
    weights = torch.cat([torch.nn.functional.pad(w, (0, width - w.shape[1])) for _, w in rules])
    return Density(
        nodes=nodes,
        weights=weights,
        dimension=runs[0].basis.shape[2],
        resolution=resolution,
        num_products=sum(run.num_products for run in runs),
        status=status,
    )


class _Probes:
    """A group of Lanczos runs in step; ``basis`` is (probes, steps, n)."""

    def __init__(
        self, operator: LinearOperator, count: int, capacity: int, generator: torch.Generator
    ) -> None:
        self.operator, self.count = operator, count
        size = operator.shape[0]
        self.basis = torch.empty(
            count, capacity, size, dtype=operator.dtype, device=operator.device
        )
        self.basis[:, 0] = sphere(operator, count, generator=generator).T
        self.diagonal = torch.zeros(count, capacity, dtype=torch.float64)
        self.below = torch.zeros(count, capacity, dtype=torch.float64)
        self.steps = self.num_products = 0
        self.scale = torch.zeros(count, dtype=torch.float64)
        self.broken = self.asymmetric = self.stable = False
        self.epsilon = torch.finfo(operator.dtype).eps
        # Estimated inner products of the present and the previous vector with all older ones.
        self.overlaps = torch.zeros(2, count, capacity + 1, dtype=torch.float64)
        self.overlaps[0, :, 0] = 1.0
        self.twice = False
        self.num_passes = 0

    def run(self, steps: int) -> None:
        """Advance to the given number of steps."""
        while self.steps < steps and not self.broken:
            self._step()

    def run_until_stable(self, tolerance: float, resolution: float) -> int:
        """Advance until further steps change the smoothed density little; returns the steps."""
        capacity = self.basis.shape[1]
        before = None
        while self.steps < capacity and not self.broken:
            self.run(min(self.steps + _STEPS_AT_ONCE, capacity))
            rule = _gather([self], resolution, "finished")
            if before is not None:
                now = rule.curve()
                then = before.curve(grid=now.grid, width=now.width)
                change = torch.trapezoid((now.value - then.value).abs(), now.grid)
                if float(change) <= tolerance:
                    self.stable = True
                    break
            before = rule
        # A Krylov space that fills the whole space leaves nothing to change.
        self.stable = self.stable or self.steps == self.basis.shape[2]
        return self.steps

    def quadrature(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights (probes, steps): eigenvalues and squared first entries of T."""
        steps = self.steps
        if self.broken or steps == 0:
            nothing = torch.full((self.count, max(steps, 1)), math.nan, dtype=torch.float64)
            return nothing, nothing
        small = torch.diag_embed(self.diagonal[:, :steps])
        off = torch.diag_embed(self.below[:, : steps - 1], offset=-1)
        nodes, vectors = torch.linalg.eigh(small + off + off.mT)
        weights = vectors[:, 0].square()
        # Rounding of zero: no information, but a logarithm at a node of zero would notice.
        return nodes, torch.where(weights > 1e-30, weights, 0.0)

    def _step(self) -> None:
        step = self.steps
        current = self.basis[:, step]
        product = (self.operator @ current.T).detach().T
        self.num_products += self.count
        sizes = product.norm(dim=1)
        if not bool(torch.isfinite(sizes).all()):
            self.broken = True
            return
        self.scale = torch.maximum(self.scale, sizes.to(self.scale))
        centre = torch.linalg.vecdot(product, current)
        # Fused, and in place where possible: each pass over all probes' vectors is felt.
        rest = torch.addcmul(product, current, centre.unsqueeze(1), value=-1)
        if step:
            coupling = self.below[:, step - 1].to(rest).unsqueeze(1)
            rest.addcmul_(self.basis[:, step - 1], coupling, value=-1)
        length = rest.norm(dim=1)
        lost = self._lost(length.to(self.scale), centre.to(self.scale))
        # The next vector inherits from this one and the one before: two in a row are cleaned.
        must = bool((lost > math.sqrt(self.epsilon)).any())
        # Nothing follows from the last vector.
        last = step + 1 == self.basis.shape[1]
        if step < _WATCHED_STEPS or ((must or self.twice) and not last):
            self.twice = must and not self.twice
            stray = self._orthogonalise(rest, step + 1)
            # One pass removes rounding along older vectors, unless little else is left.
            before, length = length, rest.norm(dim=1)
            if bool((length < 0.7 * before).any()):
                stray = stray + self._orthogonalise(rest, step + 1)
                length = rest.norm(dim=1)
            centre = centre.to(self.scale) + stray[:, step]
            self.overlaps[0, :, : step + 1] = self.epsilon
            # What is left along older vectors contradicts symmetry if it is more than rounding.
            if step < _WATCHED_STEPS:
                limit = math.sqrt(self.epsilon) * self.scale
                self.asymmetric |= bool((stray[:, :step].abs() > limit.unsqueeze(1)).any())
        length = length.to(self.scale)
        self.diagonal[:, step] = centre
        self.steps += 1
        if last:
            return
        # A closed Krylov space: what is left is rounding, and couples to nothing.
        alive = length > 32 * self.epsilon * self.scale
        self.below[:, step] = torch.where(alive, length, 0.0)
        divisor = torch.where(alive, length, math.inf).to(rest)
        torch.div(rest, divisor.unsqueeze(1), out=self.basis[:, step + 1])

    def _lost(self, length: Tensor, centre: Tensor) -> Tensor:
        """Largest inner product of each probe's next vector with older ones, by the recurrence.

        Inner products obey the recurrence of the vectors themselves, plus rounding [Simon 1984,
        eq. 3.2]; ``overlaps`` moves one step on.
        """
        step, now, before = self.steps, self.overlaps[0], self.overlaps[1]
        following = torch.zeros_like(now)
        rounding = 4 * self.epsilon * self.scale.unsqueeze(1)
        if step:
            below = self.below[:, :step]
            total = below * now[:, 1 : step + 1]
            total = total + (self.diagonal[:, :step] - centre.unsqueeze(1)) * now[:, :step]
            total[:, 1:] += below[:, :-1] * now[:, : step - 1]
            total = total - below[:, -1:] * before[:, :step]
            divisor = length.clamp(min=1e-300).unsqueeze(1)
            following[:, :step] = (total.abs() + rounding) / divisor
        following[:, step] = self.epsilon
        largest = following[:, : step + 1].amax(dim=1)
        following[:, step + 1] = 1.0
        self.overlaps = torch.stack([following, now])
        return torch.where(length > 32 * self.epsilon * self.scale, largest, 0.0)

    def _orthogonalise(self, rows: Tensor, count: int) -> Tensor:
        """Take out of each probe's row, in place, its part along the first vectors of its basis.

        Probe by probe: two products with a contiguous matrix each are quicker than a batched call.
        """
        self.num_passes += 1
        parts = []
        for basis, row in zip(self.basis, rows, strict=True):
            parts.append(basis[:count] @ row)
            row.addmv_(basis[:count].T, parts[-1], alpha=-1)
        return torch.stack(parts).to(self.scale)
