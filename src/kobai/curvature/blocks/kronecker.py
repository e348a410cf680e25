"""Kronecker-factored Fisher blocks B ⊗ A of layers, and their damped inverses.

`kobai.curvature.blocks.factor_sums` says what A and B are.

Source: Martens and Grosse 2015, Optimizing neural networks with Kronecker-factored approximate
curvature (§6.3).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kobai.curvature.blocks.factor_sums import FactorSums
from kobai.curvature.blocks.interface import Block
from kobai.curvature.blocks.shifted_inverse import (
    REPLACED,
    InverseMethod,
    shifted_inverse,
    unread_inverse,
)
from kobai.layers.moments import multiplies_bfloat16

_PIECES_ERROR = 0.01
"""Error of a step, relative to its length in the metric it is taken in, at which products in pieces
are given up."""

_PIECES_SAMPLE = 64
"""Rows and columns of a sample on which that is measured."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KroneckerFactors:
    """Blocks B ⊗ A of a Fisher matrix, several of equal shape in one stack.

    Attributes:
        inputs: A, second moments of the inputs, (S, K, K).
        outputs: B, second moments of the output gradients, (S, M, M).
    """

    inputs: Float[Tensor, "S K K"]
    outputs: Float[Tensor, "S M M"]

    def product(self, matrices: Float[Tensor, "S M K"]) -> Float[Tensor, "S M K"]:
        """(B ⊗ A) vec(V) as matrices: B V A."""
        return self.outputs @ (matrices @ self.inputs)

    def dense(self) -> Float[Tensor, "S MK MK"]:
        """The blocks written out, for row-major vec; M²K² numbers each."""
        blocks = torch.einsum("sij,skl->sikjl", self.outputs, self.inputs)
        size = self.outputs.shape[1] * self.inputs.shape[1]
        return blocks.reshape(-1, size, size)

    def balance(self, damping: float) -> Float[Tensor, " S"]:
        """π: the ratio of the factors' scales, √(mean eigenvalue of A / mean eigenvalue of B).

        Where a factor all but vanishes next to the damping, its scale is floored there: the block
        is then a multiple of the identity whatever π is, and the floor keeps numbers in range.
        """
        tiny = torch.finfo(self.inputs.dtype).tiny ** 0.25
        a = self.inputs.diagonal(dim1=1, dim2=2).mean(1).clamp(min=tiny)
        b = self.outputs.diagonal(dim1=1, dim2=2).mean(1)
        b = torch.maximum(b, 1e-6 * damping / a).clamp(min=tiny)
        return (a / b).sqrt()

    def inverse(
        self,
        damping: float,
        method: InverseMethod = "cholesky",
        start: "tuple[Tensor, Tensor] | None" = None,
    ) -> "KroneckerInverse":
        """(B + √λ/π I)⁻¹ ⊗ (A + π √λ I)⁻¹: Tikhonov damping λ shared out between the factors.

        Args:
            damping: λ > 0, in units of the Fisher matrix.
            method: How matrices are inverted; see `kobai.curvature.blocks.shifted_inverse`.
            start: Inverses of A and of B nearby, of which Newton-Schulz makes use.

        Returns:
            The inverses with a status a block: never an exception on account of numbers.
            Cost: (K³ + M³)/2 a block by Cholesky. Source: Martens and Grosse 2015, §6.3.

        Raises:
            ValueError: If the damping is not positive and finite.
        """
        if not (math.isfinite(damping) and damping > 0):
            raise ValueError(f"damping must be positive and finite, got {damping}")
        balance, root = self.balance(damping), math.sqrt(damping)
        own, other = (None, None) if start is None else start
        inputs, first = shifted_inverse(self.inputs, balance * root, method, own)
        outputs, second = shifted_inverse(self.outputs, root / balance, method, other)
        # The worse of two codes, and whether either was replaced.
        replaced = torch.maximum(first // REPLACED, second // REPLACED) * REPLACED
        status = torch.maximum(first % REPLACED, second % REPLACED) + replaced
        return KroneckerInverse(inputs=inputs, outputs=outputs, status=status)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KroneckerInverse:
    """Inverses of damped Kronecker blocks.

    Attributes:
        inputs: (A + …)⁻¹, (S, K, K).
        outputs: (B + …)⁻¹, (S, M, M).
        status: How each block was inverted; see `kobai.curvature.blocks.shifted_inverse`.
    """

    inputs: Float[Tensor, "S K K"]
    outputs: Float[Tensor, "S M M"]
    status: Int[Tensor, " S"]

    def product(self, matrices: Float[Tensor, "S M K"]) -> Float[Tensor, "S M K"]:
        """The inverse times vec(V) as matrices: B⁻¹ V A⁻¹. Cost: MK(M + K) a block."""
        return self.outputs @ (matrices @ self.inputs)


@final
class KroneckerBlock(Block):
    """Kronecker-factored blocks of equal shape, with averages of A and B and their inverses.

    Args:
        shape: (S, M, K).
        dtype: Precision of the matrices that are solved for.
        device: Where everything lies.
        precision: Precision of averages and inversion; default: `dtype`.
        product_dtype: Precision in which inverses are kept and multiplied; default: `dtype`.
        method: How factors are inverted.
        alone: Whether this is one wide block, for which a route is worth choosing: products from
            rows of the gradient, or, in float32 on a CPU that multiplies bfloat16 matrices, in two
            bfloat16 pieces where a try at each refresh finds that near enough.

    Attributes:
        factors: The moving averages.
        input_inverses: (A + …)⁻¹, (S, K, K).
        output_inverses: (B + …)⁻¹, (S, M, M).
        pieces: 1 where products are made in pieces, (S,).
    """

    kind: ClassVar[str] = "kronecker"

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        precision: torch.dtype | None = None,
        product_dtype: torch.dtype | None = None,
        method: InverseMethod = "cholesky",
        alone: bool = False,
    ) -> None:
        self.shape, self.alone = shape, alone
        count, m, k = shape
        self.method: InverseMethod = method
        self.cost = float(m**3 + k**3)

        def zeros(size: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(count, size, size, dtype=dtype, device=device)

        averaged = precision or dtype
        self.factors = KroneckerFactors(inputs=zeros(k, averaged), outputs=zeros(m, averaged))
        kept = product_dtype or dtype
        self.input_inverses, self.output_inverses = zeros(k, kept), zeros(m, kept)
        self.pieces = torch.zeros(count, dtype=dtype, device=device)
        self._may_split = (
            alone and product_dtype is None and averaged == torch.float32 and multiplies_bfloat16()
        )
        self._split: tuple[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor]] | None = None

    @property
    def exact(self) -> bool:
        """Say whether products are plain ones in the precision of the matrices."""
        split = self._may_split and bool(self.pieces[0])
        return not split and self.input_inverses.dtype == self.pieces.dtype

    def average(self, own: slice, moments: FactorSums, past: float, weight: float) -> bool:
        """See `Block.average`."""
        return moments.into((self.factors.inputs[own], self.factors.outputs[own]), past, weight)

    def multiply(self, matrices: Float[Tensor, "S M K"]) -> Float[Tensor, "S M K"]:
        """See `Block.multiply`."""
        return self.factors.product(matrices)

    def solve(self, matrices: Tensor, damping: float, own: slice, out: Tensor) -> None:
        """See `Block.solve`; the damping lies in the inverses. Cost: MK(M + K) per entry."""
        del damping
        left, right = self.output_inverses[own], self.input_inverses[own]
        if self._may_split and bool(self.pieces[0]):
            large, rest, within, within_rest = self._in_pieces()
            out.copy_(_left(large, rest, _right(matrices.bfloat16(), within, within_rest)))
        elif right.dtype == matrices.dtype:
            torch.bmm(left, matrices @ right, out=out)
        else:
            out.copy_(left @ (matrices.to(right.dtype) @ right))

    def add_solved_product(
        self,
        gradients: Float[Tensor, "n M"],
        inputs: Float[Tensor, "n I"],
        scale: float,
        out: Float[Tensor, "1 M K"],
        past: float,
    ) -> None:
        """Compute out ← past · out + scale · B⁻¹ gᵀ a A⁻¹ of the only entry from rows a and g.

        Args:
            gradients: g.
            inputs: a, without the ones of a bias.
            scale: Factor on the product.
            out: Changed in place.
            past: Factor on what is there; 0 ignores it, whatever it is.

        Cost: n(M² + K² + MK) multiplications.
        """
        within, count = self.input_inverses[0], inputs.shape[1]
        left = self.output_inverses[0] @ gradients.T
        if count == within.shape[0]:
            right = inputs @ within
        else:
            right = torch.addmm(within[count], inputs, within[:count])
        out[0].addmm_(left, right, beta=past, alpha=scale)

    def factor(
        self, damping: float, entries: Sequence[int], sample: Tensor | None = None
    ) -> dict[int, int]:
        """See `Block.factor`: Tikhonov damping, shared out between the factors."""
        own = slice(None) if len(entries) == self.shape[0] else list(entries)
        factors = KroneckerFactors(
            inputs=self.factors.inputs[own], outputs=self.factors.outputs[own]
        )
        known = None
        if self.method == "newton-schulz":
            a, b = self.input_inverses[own], self.output_inverses[own]
            known = a.to(factors.inputs.dtype), b.to(factors.outputs.dtype)
        inverse = factors.inverse(damping, self.method, known)
        statuses = inverse.status.tolist()
        good = [i for i, status in enumerate(statuses) if status % REPLACED < 3]
        if len(good) == self.shape[0]:
            self.input_inverses.copy_(inverse.inputs)
            self.output_inverses.copy_(inverse.outputs)
        elif good:
            places = [entries[i] for i in good]
            self.input_inverses[places] = inverse.inputs[good].to(self.input_inverses.dtype)
            self.output_inverses[places] = inverse.outputs[good].to(self.input_inverses.dtype)
        if self._may_split and good and sample is not None:
            self.pieces.fill_(float(self._pieces_error(damping, sample) <= _PIECES_ERROR))
        return dict(zip(entries, statuses, strict=True))

    def unread_inverses(self, damping: float) -> tuple[KroneckerFactors, Bool[Tensor, " S"]]:
        """Return new inverses of A and B and whether each is good, without reading a number."""
        balance, root = self.factors.balance(damping), math.sqrt(damping)
        a, first = unread_inverse(self.factors.inputs, balance * root)
        b, second = unread_inverse(self.factors.outputs, root / balance)
        return KroneckerFactors(inputs=a, outputs=b), first & second

    def replace(self, inverses: KroneckerFactors, good: Bool[Tensor, " S"]) -> None:
        """Replace inverses where there are good ones; where not, the old ones stay."""
        chosen = good.view(-1, 1, 1)
        for own, new in (
            (self.input_inverses, inverses.inputs), (self.output_inverses, inverses.outputs)
        ):  # fmt: skip
            own.copy_(torch.where(chosen, new.to(own.dtype), own))

    def tensors(self) -> dict[str, Tensor]:
        """See `Block.tensors`."""
        return {
            "input_factor": self.factors.inputs,
            "output_factor": self.factors.outputs,
            "input_inverse": self.input_inverses,
            "output_inverse": self.output_inverses,
            "pieces": self.pieces,
        }

    def averages(self) -> list[Tensor]:
        """See `Block.averages`."""
        return [self.factors.inputs, self.factors.outputs]

    def sketch(self, probe: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """See `Block.sketch`."""
        return [matrix @ probe(matrix) for matrix in self.averages()]

    def shared(self) -> list[Tensor]:
        """See `Block.shared`."""
        tensors = [self.input_inverses, self.output_inverses]
        return [*tensors, self.pieces] if self.pieces.dtype == tensors[0].dtype else tensors

    def _in_pieces(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return B⁻¹ and A⁻¹ as sums of two bfloat16 matrices, made anew if they changed."""
        versions = self.output_inverses._version, self.input_inverses._version
        if self._split is None or self._split[0] != versions:
            halves = (*_halves(self.output_inverses), *_halves(self.input_inverses))
            self._split = versions, halves
        return self._split[1]

    def _pieces_error(self, damping: float, sample: Float[Tensor, "1 M K"]) -> float:
        """Measure what products in pieces do to a step, relative to it in the norm (F + λ).

        Measured for either factor on some rows, and some columns, of the sample, which tells it up
        to a factor of about two; infinite where the sample is zero.
        """
        outer, within = self.output_inverses, self.input_inverses
        left, left_rest, right, right_rest = self._in_pieces()
        balance, root = self.factors.balance(damping), math.sqrt(damping)
        rows = sample[:, :: -(-sample.shape[1] // _PIECES_SAMPLE)].contiguous()
        exact = rows @ within
        wrong = _right(rows.bfloat16(), right, right_rest).float() - exact
        loss = (wrong * (wrong @ self.factors.inputs + balance * root * wrong)).sum()
        first = loss / (exact * rows).sum()
        columns = sample @ within[:, :, :: -(-sample.shape[2] // _PIECES_SAMPLE)]
        exact = outer @ columns
        wrong = _left(left, left_rest, columns.bfloat16()).float() - exact
        loss = (wrong * (self.factors.outputs @ wrong + root / balance * wrong)).sum()
        error = float((first + loss / (exact * columns).sum()).sqrt())
        return error if math.isfinite(error) else math.inf


def _halves(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Split a matrix into two bfloat16 ones whose sum is float32's but for a relative 2⁻¹⁷."""
    large = matrices.bfloat16()
    return large, (matrices - large).bfloat16()


def _right(m: Tensor, large: Tensor, rest: Tensor) -> Tensor:
    """Multiply m (large + rest)."""
    return torch.baddbmm(torch.bmm(m, large), m, rest)


def _left(large: Tensor, rest: Tensor, m: Tensor) -> Tensor:
    """Multiply (large + rest) m."""
    return torch.baddbmm(torch.bmm(large, m), rest, m)
