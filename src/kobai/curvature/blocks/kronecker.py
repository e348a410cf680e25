"""Kronecker-factored Fisher blocks B ⊗ A of layers, and their damped inverses.

Several blocks of equal shape lie in one stack, so that one batched factorisation serves all. What A
and B are is said in `kobai.curvature.blocks.factor_sums`.

Source: Martens and Grosse 2015, Optimizing neural networks with Kronecker-factored approximate
curvature (§6.3).
"""

import dataclasses
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kobai.curvature.blocks.shifted_inverse import REPLACED, InverseMethod, shifted_inverse


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
