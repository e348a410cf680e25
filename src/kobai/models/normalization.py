"""Normalisation over the batch, both as a training layer and as a pure full-batch function.

`BatchNorm` and `MeanSubtraction` share one contract. Their attribute `coupled_batch` is False by
default and they behave like `torch.nn.BatchNorm1d`: batch statistics and moving averages in
training mode, the averages in evaluation mode. With `coupled_batch = True` they compute the
statistics of whatever batch they are given, with gradient through them, and neither read nor write
a buffer, whatever the mode: the output is then a function of parameters and data alone, which the
theory of normalisation and every transform of `torch.func` need.

What must be differentiated twice is written in elementary operations: PyTorch's fused layer and
training-mode batch normalisation have wrong second derivatives where a backward pass is batched or
forward mode is nested (measured with PyTorch 2.13).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["BatchNorm", "LayerNorm", "MeanSubtraction", "batch_center", "batch_standardize"]


def _axes(x: Tensor) -> list[int]:
    """All axes but the channel axis 1; refuses a batch that has no second value to compare with."""
    if x.ndim < 2 or x.numel() < 2 * x.shape[1]:
        raise ValueError(
            "statistics over a batch need two or more values per channel, got a batch of shape "
            f"{tuple(x.shape)}; use a larger batch, or .eval()"
        )
    return [0, *range(2, x.ndim)]


def batch_center(x: Float[Tensor, "N C *rest"]) -> Float[Tensor, "N C *rest"]:
    """Subtract the batch mean of every channel: x ↦ (I − 11ᵀ/N) x.

    Args:
        x: Batch; statistics are over axis 0 and all axes behind 1.

    Returns:
        The centred batch, differentiable through the mean.

    Raises:
        ValueError: If a channel has fewer than two values.
    """
    return x - x.mean(_axes(x), keepdim=True)


def batch_standardize(
    x: Float[Tensor, "N C *rest"], *, eps: float = 1e-5
) -> Float[Tensor, "N C *rest"]:
    """Centre every channel over the batch and divide by its standard deviation.

    Args:
        x: Batch; statistics are over axis 0 and all axes behind 1.
        eps: Added to the variance (divisor N, not N − 1); with 0 a constant channel gives NaN.

    Returns:
        The standardised batch, differentiable through mean and variance.

    Raises:
        ValueError: If a channel has fewer than two values.
    """
    centred = batch_center(x)
    return centred * (centred.square().mean(_axes(x), keepdim=True) + eps).rsqrt()


class BatchNorm(nn.Module):
    """Batch normalisation of axis 1, for flat features and images alike.

    Parameters and buffers are named as in `torch.nn.BatchNorm1d`, so state dicts interchange.
    See the module's first lines for `coupled_batch`.

    Args:
        num_features: C, the size of axis 1.
        eps: Added to the variance.
        momentum: Weight of the newest batch in the moving averages; None averages all batches
            seen since the last reset equally.
        affine: Learn a scale and a shift per channel.
        dtype: Type of parameters and averages.
        device: Device of parameters and averages.

    Raises:
        ValueError: In the forward pass, if statistics are wanted of a single value per channel.

    Source: Ioffe & Szegedy 2015, Algorithm 1.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine = affine
        self.coupled_batch = False
        for name in ("weight", "bias"):
            blank = torch.empty(num_features, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(blank) if affine else None)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(num_features, dtype=dtype, device=device))
        self.register_buffer(
            "num_batches_tracked", torch.empty((), dtype=torch.long, device=device)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set scale 1, shift 0, and forget the moving averages; draws nothing."""
        self.running_mean.zero_()
        self.running_var.fill_(1.0)
        self.num_batches_tracked.zero_()
        if self.weight is not None and self.bias is not None:
            self.weight.fill_(1.0)
            self.bias.zero_()

    def forward(self, x: Float[Tensor, "N C *rest"]) -> Float[Tensor, "N C *rest"]:
        """Normalise a batch; cost linear in its size."""
        if self.coupled_batch:
            y = batch_standardize(x, eps=self.eps)
            if self.weight is None or self.bias is None:
                return y
            shape = (-1, *[1] * (x.ndim - 2))
            return y * self.weight.view(shape) + self.bias.view(shape)
        factor = self.momentum or 0.0
        if self.training:
            _axes(x)
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=factor,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """Sizes and settings, for printing."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
        )


class MeanSubtraction(nn.Module):
    """Subtract the batch mean of every output: f_k ← f_k − mean_n f_k(n).

    On the last layer this removes the outlier eigenvalues of the Fisher matrix of a wide network
    while leaving its bulk (Karakida, Akaho & Amari 2019, arXiv:1906.02926). It has no parameters;
    in evaluation mode the moving average of the mean is subtracted. See the module's first lines
    for `coupled_batch`.

    Args:
        num_features: C, the size of axis 1.
        momentum: Weight of the newest batch in the moving average; None averages all batches
            seen since the last reset equally.
        dtype: Type of the average.
        device: Device of the average.

    Raises:
        ValueError: In the forward pass, if the mean is wanted of a single value per channel.
    """

    running_mean: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        momentum: float | None = 0.1,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.momentum = num_features, momentum
        self.coupled_batch = False
        self.register_buffer("running_mean", torch.empty(num_features, dtype=dtype, device=device))
        self.register_buffer(
            "num_batches_tracked", torch.empty((), dtype=torch.long, device=device)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Forget the moving average; draws nothing."""
        self.running_mean.zero_()
        self.num_batches_tracked.zero_()

    def forward(self, x: Float[Tensor, "N C *rest"]) -> Float[Tensor, "N C *rest"]:
        """Centre a batch; cost linear in its size."""
        if self.coupled_batch:
            return batch_center(x)
        if not self.training:
            return x - self.running_mean.view(-1, *[1] * (x.ndim - 2))
        mean = x.mean(_axes(x), keepdim=True)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            newest = self.momentum
            if newest is None:
                newest = 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.flatten(), newest)
        return x - mean

    def extra_repr(self) -> str:
        """Sizes and settings, for printing."""
        return f"{self.num_features}, momentum={self.momentum}"


class LayerNorm(nn.Module):
    """Layer normalisation of the last axis, example by example.

    Parameters are named as in `torch.nn.LayerNorm`, so state dicts interchange; derivatives of
    every order and mode are right (see the module's first lines).

    Args:
        num_features: Size of the last axis.
        eps: Added to the variance.
        affine: Learn a scale and a shift per feature.
        dtype: Type of the parameters.
        device: Device of the parameters.

    Source: Ba, Kiros & Hinton 2016, eq. 4.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        affine: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, affine
        for name in ("weight", "bias"):
            blank = torch.empty(num_features, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(blank) if affine else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set scale 1 and shift 0; draws nothing."""
        if self.weight is not None and self.bias is not None:
            self.weight.fill_(1.0)
            self.bias.zero_()

    def forward(self, x: Float[Tensor, "*N features"]) -> Float[Tensor, "*N features"]:
        """Standardise every example over its features; cost linear in its size."""
        centred = x - x.mean(-1, keepdim=True)
        y = centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return y if self.weight is None or self.bias is None else y * self.weight + self.bias

    def extra_repr(self) -> str:
        """Sizes and settings, for printing."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"
