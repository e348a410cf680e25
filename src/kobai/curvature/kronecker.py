"""Kronecker-factored Fisher blocks of layers: from a layer's calls to A ⊗ B and its damped inverse.

A layer that multiplies every row a of its inputs by one matrix has per-example gradients Σ_t g_t
a_tᵀ: g_t is the gradient in output row t, and t runs over the places where the matrix is used
(tokens, positions of a convolution, repeated calls). K-FAC "expand" treats the places as
independent of each other and a as independent of g:

    F = E[vec(g aᵀ) vec(g aᵀ)ᵀ] ≈ B ⊗ A,   A = (1/R) Σ a aᵀ,   B = (1/W) Σ g gᵀ,

with row-major vec, R the number of rows seen and W the normaliser of the objective (see
`kobai.problem.likelihood`). It is exact where the network is linear and every output term has its
own loss. A bias is one more input that is always one; groups of a convolution are separate blocks.

Sources: Martens and Grosse 2015, Optimizing neural networks with Kronecker-factored approximate
curvature (§3, §6.3); Grosse and Martens 2016, A Kronecker-factored approximate Fisher matrix for
convolution layers (§3); Eschenhagen et al. 2023, Kronecker-factored approximate curvature for
modern neural network architectures (§3, "expand").
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from kobai.linalg import cholesky

# Narrower or shorter matrices are multiplied whole: halving saves less than it costs.
_SPLIT_WIDTH = 384
_SPLIT_ROWS = 512

_STATUS = {"ok": 0, "jittered": 2, "indefinite": 3, "non-finite": 3}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LayerForm:
    """How a layer's parameters form matrices, one a group.

    Attributes:
        groups: Number of independent matrices (groups of a convolution, else 1).
        outputs: Rows M of each matrix.
        inputs: Columns K of each matrix, the bias counted.
        bias: Whether the last column is the bias.
    """

    groups: int
    outputs: int
    inputs: int
    bias: bool

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Float[Tensor, "G M K"]:
        """Weight and bias (or their gradients) as matrices; None stands for zeros."""
        flat = weight.reshape(self.groups, self.outputs, -1)
        if not self.bias:
            return flat
        column = (
            flat.new_zeros(self.groups, self.outputs, 1)
            if bias is None
            else bias.reshape(self.groups, self.outputs, 1)
        )
        return torch.cat([flat, column], dim=2)

    def weight_part(self, matrix: Float[Tensor, "G M K"]) -> Tensor:
        """The columns that belong to the weight; a view."""
        return matrix[:, :, : self.inputs - 1] if self.bias else matrix

    def bias_part(self, matrix: Float[Tensor, "G M K"]) -> Float[Tensor, "G M"]:
        """The column that belongs to the bias; a view. Only where there is a bias."""
        return matrix[:, :, self.inputs - 1]


def layer_form(module: nn.Module, *, bias: bool = True) -> LayerForm | None:
    """The form of a layer that K-FAC knows, or None.

    Linear and Conv2d qualify, and their subclasses that compute the same function.

    Args:
        module: Any module.
        bias: Whether the bias, where there is one, belongs to the matrix.
    """
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        groups, outputs, inputs = 1, module.out_features, module.in_features
    elif (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and type(module)._conv_forward is nn.Conv2d._conv_forward
    ):
        groups = module.groups
        outputs = module.out_channels // groups
        inputs = module.in_channels // groups * math.prod(module.kernel_size)
    else:
        return None
    has_bias = bias and module.bias is not None
    return LayerForm(groups=groups, outputs=outputs, inputs=inputs + has_bias, bias=has_bias)


def input_moment(
    module: nn.Module, form: LayerForm, inputs: Tensor
) -> tuple[Float[Tensor, "G K K"], int]:
    """Σ a aᵀ over all rows of one call, and the number of rows R.

    Args:
        module: The layer, of a kind that `layer_form` knows.
        form: Its form.
        inputs: What it was called with.

    Returns:
        The sum (not divided) and R = examples times places. Cost: R K² multiplications a group
        (about 5/8 of that for wide layers, by symmetry); a convolution also unfolds its input.
    """
    if isinstance(module, nn.Conv2d):
        return _convolution_moment(module, form, inputs)
    rows = inputs.reshape(-1, inputs.shape[-1])
    if form.bias:
        rows = torch.cat([rows, rows.new_ones(rows.shape[0], 1)], dim=1)
    return gram(rows).unsqueeze(0), rows.shape[0]


def output_moment(module: nn.Module, form: LayerForm, gradients: Tensor) -> Float[Tensor, "G M M"]:
    """Σ g gᵀ over all rows of one call, not divided.

    Args:
        module: The layer, of a kind that `layer_form` knows.
        form: Its form.
        gradients: Gradients in the layer's output, shaped like it.
    """
    if not isinstance(module, nn.Conv2d):
        return gram(gradients.reshape(-1, form.outputs)).unsqueeze(0)
    images = gradients if gradients.ndim == 4 else gradients.unsqueeze(0)
    rows = images.reshape(-1, form.groups, form.outputs, images.shape[2] * images.shape[3])
    if form.groups == 1:
        return _sum_of_grams(rows.squeeze(1)).unsqueeze(0)
    flat = rows.permute(1, 2, 0, 3).reshape(form.groups, form.outputs, -1)
    return flat @ flat.mT


def gram(rows: Float[Tensor, "R K"]) -> Float[Tensor, "K K"]:
    """XᵀX of a matrix of rows; wide ones by quarters, so that symmetry saves work."""
    width = rows.shape[1]
    if width < _SPLIT_WIDTH or rows.shape[0] < _SPLIT_ROWS:
        return rows.T @ rows
    half = width // 2
    left, right = rows[:, :half], rows[:, half:]
    result = rows.new_empty(width, width)
    result[:half, :half] = gram(left)
    result[half:, half:] = gram(right)
    corner = left.T @ right
    result[:half, half:] = corner
    result[half:, :half] = corner.T
    return result


def _sum_of_grams(stack: Float[Tensor, "N K L"]) -> Float[Tensor, "K K"]:
    """Σ_n X_n X_nᵀ without transposing the stack in memory."""
    width = stack.shape[1]
    return torch.addbmm(stack.new_zeros(width, width), stack, stack.mT, beta=0.0)


def _with_ones(moment: Tensor, sums: Tensor, count: int) -> Tensor:
    """Border a moment matrix by the moments with an input that is always one."""
    width = moment.shape[-1]
    bordered = moment.new_empty(*moment.shape[:-2], width + 1, width + 1)
    bordered[..., :width, :width] = moment
    bordered[..., :width, width] = sums
    bordered[..., width, :width] = sums
    bordered[..., width, width] = count
    return bordered


def _padded(module: nn.Conv2d, images: Tensor) -> Tensor:
    """The images as the convolution sees them, in its padding mode."""
    pads: list[int] = []
    for axis in (1, 0):
        if module.padding == "valid":
            before = after = 0
        elif module.padding == "same":
            # An odd total puts the extra line last, as torch does.
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            before, after = total // 2, total - total // 2
        else:
            before = after = int(module.padding[axis])
        pads += [before, after]
    if not any(pads):
        return images
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(images, pads, mode=mode)


def _convolution_moment(
    module: nn.Conv2d, form: LayerForm, inputs: Tensor
) -> tuple[Float[Tensor, "G K K"], int]:
    images = inputs if inputs.ndim == 4 else inputs.unsqueeze(0)
    patches = F.unfold(
        _padded(module, images),
        kernel_size=module.kernel_size,
        dilation=module.dilation,
        stride=module.stride,
    )
    examples, _, places = patches.shape
    rows = examples * places
    stack = patches.reshape(examples, form.groups, -1, places)
    if form.groups == 1:
        moment = _sum_of_grams(stack.squeeze(1)).unsqueeze(0)
    else:
        flat = stack.permute(1, 2, 0, 3).reshape(form.groups, stack.shape[2], rows)
        moment = flat @ flat.mT
    if form.bias:
        moment = _with_ones(moment, stack.sum((0, 3)), rows)
    return moment, rows


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

    def inverse(self, damping: float) -> "KroneckerInverse":
        """(B + √λ/π I)⁻¹ ⊗ (A + π √λ I)⁻¹: Tikhonov damping λ shared out between the factors.

        Args:
            damping: λ > 0, in units of the Fisher matrix.

        Returns:
            The inverses with a status a block: never an exception on account of numbers.
            Cost: (K³ + M³) a block. Source: Martens and Grosse 2015, §6.3.

        Raises:
            ValueError: If the damping is not positive and finite.
        """
        if not (math.isfinite(damping) and damping > 0):
            raise ValueError(f"damping must be positive and finite, got {damping}")
        balance, root = self.balance(damping), math.sqrt(damping)
        inputs, first = _shifted_inverse(self.inputs, balance * root)
        outputs, second = _shifted_inverse(self.outputs, root / balance)
        return KroneckerInverse(inputs=inputs, outputs=outputs, status=torch.maximum(first, second))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KroneckerInverse:
    """Inverses of damped Kronecker blocks.

    Attributes:
        inputs: (A + …)⁻¹, (S, K, K).
        outputs: (B + …)⁻¹, (S, M, M).
        status: How each block was inverted: 0 in its own precision, 1 in float64, 2 with its
            damping raised, 3 not at all (not finite; the inverse is then zero).
    """

    inputs: Float[Tensor, "S K K"]
    outputs: Float[Tensor, "S M M"]
    status: Int[Tensor, " S"]

    def product(self, matrices: Float[Tensor, "S M K"]) -> Float[Tensor, "S M K"]:
        """The inverse times vec(V) as matrices: B⁻¹ V A⁻¹. Cost: MK(M + K) a block."""
        return self.outputs @ (matrices @ self.inputs)


def _shifted_inverse(
    matrices: Float[Tensor, "S n n"], shifts: Float[Tensor, " S"]
) -> tuple[Float[Tensor, "S n n"], Int[Tensor, " S"]]:
    """(C + s I)⁻¹ of positive semi-definite matrices, and how it was come by."""
    factor = cholesky(matrices, damping=shifts, precision=matrices.dtype)
    inverse = torch.cholesky_inverse(factor.triangle).to(matrices.dtype)
    status = [_STATUS[name] for name in factor.statuses]
    if factor.triangle.dtype != matrices.dtype:
        status = [max(code, 1) for code in status]
    found = torch.tensor(status, device=matrices.device)
    # A matrix on the brink can have an inverse that overflows.
    failed = (found == 3) | ~torch.isfinite(inverse.sum((1, 2)))
    inverse[failed] = 0.0
    return inverse, torch.where(failed, 3, found)
