"""The NTK parameterisation of a dense layer.

It gives functions of the same law as the standard one, with other Jacobians, and hence other
Fisher matrices, tangent kernels and learning rates.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kobai.models.validation import require_positive

__all__ = ["NTKLinear"]


class NTKLinear(nn.Module):
    """A dense layer whose scale sits in the function: u = √(s_w/M) W h + √s_b b.

    M is `in_features`, W_ij and b_i are N(0, 1) and stored unscaled. The same function in standard
    parameterisation has the weights √(s_w/M) W and biases √s_b b. Source: Jacot, Gabriel & Hongler
    2018, section 2.

    Args:
        in_features: M, the size of the input's last axis.
        out_features: Units.
        bias: Add √s_b b. With s_b = 0 no bias exists, for it could never move the output.
        weight_variance: s_w = σ_w², the variance of a pre-activation per unit mean-square input.
        bias_variance: s_b = σ_b².
        generator: Source of W and b.
        dtype: Type of the parameters.
        device: Device of the parameters.

    Raises:
        ValueError: If a size or s_w is not positive, or s_b is negative.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        weight_variance: float = 2.0,
        bias_variance: float = 0.0,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        require_positive("in_features and out_features", in_features, out_features)
        require_positive("weight_variance", weight_variance)
        if bias_variance < 0:
            raise ValueError(f"bias_variance must not be negative, got {bias_variance}")
        self.in_features, self.out_features = in_features, out_features
        self.weight_variance, self.bias_variance = weight_variance, bias_variance
        blank = torch.empty(out_features, in_features, dtype=dtype, device=device)
        self.weight = nn.Parameter(blank)
        self.bias = None
        if bias and bias_variance > 0:
            self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device))
        self.reset_parameters(generator=generator)

    @property
    def weight_scale(self) -> float:
        """√(s_w/M), what multiplies W h."""
        return math.sqrt(self.weight_variance / self.in_features)

    @property
    def bias_scale(self) -> float:
        """√s_b, what multiplies b."""
        return math.sqrt(self.bias_variance)

    @property
    def linear_scales(self) -> tuple[float, float]:
        """Factors of W h and of b: tell curvature that the layer is an affine map."""
        return self.weight_scale, self.bias_scale

    @torch.no_grad()
    def reset_parameters(self, *, generator: torch.Generator) -> None:
        """Draw W and b from N(0, 1) in float64; on the device "meta" draw nothing."""
        if self.weight.is_meta:
            return
        for parameter in self.parameters(recurse=False):
            draw = torch.empty(parameter.shape, dtype=torch.float64, device=generator.device)
            parameter.copy_(draw.normal_(generator=generator))

    def forward(self, h: Float[Tensor, "*N M"]) -> Float[Tensor, "*N units"]:
        """Map the last axis; cost of one matrix product."""
        bias = None if self.bias is None else self.bias_scale * self.bias
        return F.linear(self.weight_scale * h, self.weight, bias)

    def extra_repr(self) -> str:
        """Sizes and variances, for printing."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, weight_variance={self.weight_variance}, "
            f"bias_variance={self.bias_variance}"
        )
