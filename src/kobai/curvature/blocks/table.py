"""Blocks that need no inverse matrices of their own size: diagonal ones, units, and tables."""

import dataclasses
import math
from typing import Any, final

import torch
from torch import Tensor, nn

from kobai.curvature.blocks.factor_sums import FactorSums
from kobai.curvature.blocks.shifted_inverse import InverseMethod, shifted_inverse
from kobai.linalg import eigh
from kobai.optim.averages import factor_dtype, inner, past_weight
from kobai.optim.coverage import DiagonalParameter, KroneckerLayer, UnitLayer
from kobai.optim.device_step import kept_gradient, kept_share
from kobai.optim.inversions import Inversions
from kobai.optim.kronecker_stack import Preconditioned, fits


@final
@dataclasses.dataclass(slots=True, eq=False)
class DiagonalBlock:
    """A parameter with a diagonal Fisher matrix.

    Attributes:
        position: Its position in the plan.
        entry: The parameter.
        group: Index of its parameter group.
        fisher: Moving average of the diagonal, shaped like the parameter.
        momentum: Momentum, shaped like the parameter.
        count: How many updates the average has had.
    """

    position: int
    entry: DiagonalParameter
    group: int
    fisher: Tensor
    momentum: Tensor
    count: int = 0

    @classmethod
    def empty(cls, position: int, entry: DiagonalParameter, group: int) -> "DiagonalBlock":
        """A block without statistics."""
        dtype = factor_dtype(entry.parameter.dtype)
        zeros = torch.zeros_like(entry.parameter, dtype=dtype, requires_grad=False)
        return cls(position, entry, group, zeros, zeros.clone())

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter under which its memory is saved."""
        return self.entry.parameter

    @property
    def name(self) -> str:
        """Name of the parameter."""
        return self.entry.name

    def fits(self) -> bool:
        """See `KroneckerStack.fits`."""
        return fits(self.momentum, self.parameter)

    def precondition(
        self, momentum: float, damping: float, finite: Tensor | None = None
    ) -> Preconditioned:
        """See `KroneckerStack.precondition`."""
        parameter = self.entry.parameter
        if parameter.grad is None:
            return 0.0, [], [], 0
        if not self.count:
            return 0.0, [], [], 1
        gradient = kept_gradient(parameter.grad, finite)
        self.momentum.mul_(kept_share(momentum, finite)).add_(gradient)
        direction = self.momentum / (self.fisher + damping)
        return inner(self.momentum, direction), [parameter], [direction], 0

    def tensors(self) -> dict[str, Tensor]:
        """The block's tensors by the names they are saved under."""
        return {"fisher": self.fisher, "momentum_buffer": self.momentum}

    def averages(self) -> list[Tensor]:
        """What decays: moving averages and momentum."""
        return [self.fisher, self.momentum]

    def update(self, squares: Tensor, weight: float) -> bool:
        """Take new squared scores into the moving average; False if they are not finite."""
        if not bool(torch.isfinite(squares.sum())):
            return False
        self.count += 1
        past = past_weight(self.count)
        self.fisher.mul_(past).add_(squares, alpha=(1 - past) / weight)
        return True


@final
class UnitBlock:
    """Scale and shift of a normalisation: a block of their own for each unit, solved every step.

    Args:
        position: Its position in the plan's units.
        entry: The layer.
        group: Index of its parameter group.
    """

    def __init__(self, position: int, entry: UnitLayer, group: int) -> None:
        self.position, self.entry, self.group = position, entry, group
        first, size = entry.tensors[0], len(entry.tensors)
        dtype = factor_dtype(first.dtype)
        self.fisher = torch.zeros(first.numel(), size, size, dtype=dtype, device=first.device)
        self.momentum = self.fisher.new_zeros(first.numel(), size)
        self.count = 0

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter under which its memory is saved."""
        return self.entry.tensors[0]

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.entry.name

    def fits(self) -> bool:
        """See `KroneckerStack.fits`."""
        return fits(self.momentum, self.parameter)

    def precondition(
        self, momentum: float, damping: float, finite: Tensor | None = None
    ) -> Preconditioned:
        """See `KroneckerStack.precondition`; 2 × 2 systems are solved in closed form."""
        tensors = self.entry.tensors
        if all(p.grad is None for p in tensors):
            return 0.0, [], [], 0
        if not self.count:
            return 0.0, [], [], 1
        self.momentum.mul_(kept_share(momentum, finite))
        for column, p in enumerate(tensors):
            if p.grad is not None:
                self.momentum[:, column].add_(kept_gradient(p.grad, finite).reshape(-1))
        m = self.momentum
        if len(tensors) == 1:
            v = m / (self.fisher[:, 0] + damping)
        else:
            a = self.fisher[:, 0, 0] + damping
            d = self.fisher[:, 1, 1] + damping
            # |b| ≤ √(ad) up to rounding: eliminate, with the damping as the least pivot.
            ratio = self.fisher[:, 0, 1] / a
            rest = (d - ratio * self.fisher[:, 0, 1]).clamp(min=damping)
            second = (m[:, 1] - ratio * m[:, 0]) / rest
            v = torch.stack([m[:, 0] / a - ratio * second, second], 1)
        present = [(p, v[:, i].view(p.shape)) for i, p in enumerate(tensors) if p.grad is not None]
        return inner(m, v), [p for p, _ in present], [step for _, step in present], 0

    def tensors(self) -> dict[str, Tensor]:
        """The block's tensors by the names they are saved under."""
        return {"unit_fisher": self.fisher, "momentum_buffer": self.momentum}

    def averages(self) -> list[Tensor]:
        """What decays: moving averages and momentum."""
        return [self.fisher, self.momentum]

    def update(self, moments: Tensor, weight: float) -> bool:
        """Take new second moments, (U, k, k), into the average; False if they are not finite."""
        if not bool(torch.isfinite(moments.sum())):
            return False
        self.count += 1
        past = past_weight(self.count)
        self.fisher.mul_(past).add_(moments, alpha=(1 - past) / weight)
        return True


@final
class TableBlock:
    """An embedding: lines of a table share B (D × D), each with a number of its own for A.

    Args:
        position: Its position in the plan's layers.
        layer: The layer.
        group: Index of its parameter group.
        corrected: Whether to keep a second moment for every entry in B's eigenbasis (EKFAC).
        method: How B is inverted.
    """

    def __init__(
        self,
        position: int,
        layer: KroneckerLayer,
        group: int,
        corrected: bool,
        method: InverseMethod = "cholesky",
    ) -> None:
        self.position, self.layer, self.group = position, layer, group
        self.method: InverseMethod = method
        weight = layer.weight
        dtype = factor_dtype(weight.dtype)
        width = layer.form.outputs
        self.frequency = torch.zeros(layer.form.inputs, dtype=dtype, device=weight.device)
        self.factor = self.frequency.new_zeros(width, width)
        self.inverse = torch.zeros_like(self.factor)
        self.shift = self.frequency.new_zeros(1)
        self.momentum = torch.zeros_like(weight, dtype=dtype, requires_grad=False)
        self.squares = torch.zeros_like(self.momentum) if corrected else None
        self.count = self.corrections = 0
        self.inverted = False

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter under which its memory is saved."""
        return self.layer.weight

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.layer.name

    @property
    def basis(self) -> Tensor | None:
        """Eigenvectors of B, once known, if second moments in them are wanted."""
        return self.inverse if self.squares is not None and self.inverted else None

    def fits(self) -> bool:
        """See `KroneckerStack.fits`."""
        return fits(self.momentum, self.parameter)

    def update(self, sums: FactorSums, weight: float) -> bool:
        """Take new second moments into the moving averages; False if they are not finite."""
        if not sums.into((self.frequency, self.factor), past_weight(self.count + 1), weight):
            return False
        self.count += 1
        return True

    def correct(self, squares: Tensor, weight: float) -> bool:
        """Take new second moments in the eigenbasis, (V, D), into their average."""
        if self.squares is None or not bool(torch.isfinite(squares.sum())):
            return False
        self.corrections += 1
        past = past_weight(self.corrections + 1)
        self.squares.mul_(past).add_(squares, alpha=(1 - past) / weight)
        return True

    def invert(self, damping: float) -> Inversions:
        """Recompute the inverse or basis; see `Blocks.invert`."""
        if not self.count:
            return Inversions()
        if self.squares is not None:
            return self._turn()
        tiny = torch.finfo(self.factor.dtype).tiny ** 0.25
        a = self.frequency.mean().clamp(min=tiny)
        b = torch.maximum(self.factor.diagonal().mean(), 1e-6 * damping / a).clamp(min=tiny)
        balance, root = (a / b).sqrt(), math.sqrt(damping)
        inverse, status = shifted_inverse(
            self.factor.unsqueeze(0), (root / balance).reshape(1), self.method,
            self.inverse.unsqueeze(0),
        )  # fmt: skip
        found = Inversions.of(int(status))
        if not found.failed:
            self.inverse.copy_(inverse[0])
            self.shift.fill_(float(balance) * root)
            self.inverted = True
        return found

    def _turn(self) -> Inversions:
        spectral = eigh(self.factor, precision=self.factor.dtype)
        if spectral.statuses[0] != "ok":
            return Inversions(failed=1)
        values = spectral.values.clamp(min=0).to(self.factor.dtype)
        self.inverse.copy_(spectral.vectors)
        assert self.squares is not None
        torch.outer(self.frequency, values, out=self.squares)
        self.corrections = 0
        self.inverted = True
        return Inversions()

    def precondition(
        self, momentum: float, damping: float, finite: Tensor | None = None
    ) -> Preconditioned:
        """See `KroneckerStack.precondition`."""
        parameter = self.layer.weight
        if parameter.grad is None:
            return 0.0, [], [], 0
        if not self.inverted:
            return 0.0, [], [], 1
        gradient = kept_gradient(parameter.grad, finite)
        self.momentum.mul_(kept_share(momentum, finite)).add_(gradient)
        if self.squares is None:
            direction = self.momentum @ self.inverse
            direction /= (self.frequency + self.shift).unsqueeze(1)
        else:
            turned = (self.momentum @ self.inverse) / (self.squares + damping)
            direction = turned @ self.inverse.T
        return inner(self.momentum, direction), [parameter], [direction], 0

    def tensors(self) -> dict[str, Tensor]:
        """The block's tensors by the names they are saved under."""
        kept = {
            "frequency": self.frequency,
            "table_factor": self.factor,
            "table_inverse" if self.squares is None else "table_basis": self.inverse,
            "table_shift": self.shift,
            "momentum_buffer": self.momentum,
        }
        return kept if self.squares is None else {**kept, "squares": self.squares}

    def averages(self) -> list[Tensor]:
        """What decays: moving averages and momentum."""
        own = [self.frequency, self.factor, self.momentum]
        return own if self.squares is None else [*own, self.squares]

    def counts(self) -> dict[str, Any]:
        """Counters that are saved with the tensors."""
        return {"updates": self.count, "inverted": self.inverted, "corrections": self.corrections}
