"""Initialisation by name, from a generator and never from the global random state.

Numbers are drawn in float64 on the generator's device and then copied, so that a float32 model on a
GPU and a float64 model on a CPU start from the same point up to rounding. Fans count a
convolution's kernel positions: fan_in = in_channels · kernel area.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from kobai.models.normalization import BatchNorm, LayerNorm, MeanSubtraction
from kobai.models.parameterization import NTKLinear
from kobai.models.validation import require_choice, require_positive

__all__ = [
    "INITS",
    "PLAIN_INITS",
    "Init",
    "InitName",
    "PlainInitName",
    "dense",
    "draw_weight",
    "initialize",
    "materialize",
]

PlainInitName = Literal[
    "glorot-uniform",
    "glorot-normal",
    "he",
    "lecun",
    "orthogonal",
    "sparse",
    "random-walk",
    "standard",
]
InitName = Literal[
    "glorot-uniform",
    "glorot-normal",
    "he",
    "lecun",
    "orthogonal",
    "sparse",
    "random-walk",
    "standard",
    "ntk",
]

#: Every initialisation that only sets parameters.
PLAIN_INITS: tuple[str, ...] = get_args(PlainInitName)
#: Every initialisation; "ntk" also asks for `NTKLinear` layers.
INITS: tuple[str, ...] = get_args(InitName)

#: Nonzero incoming weights of a unit under "sparse".
_SPARSE_CONNECTIONS = 15
#: Embeddings start small, for what they are added to is normalised: N(0, 0.02²).
_EMBEDDING_SD = 0.02

_NORMS = (
    BatchNorm,
    LayerNorm,
    MeanSubtraction,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


@dataclass(frozen=True, kw_only=True)
class Init:
    """An initialisation: a name and its free variances.

    The weights of a layer, with m = fan_in and n = fan_out:

    ==============  ================================================================================
    glorot-uniform  U(−a, a), a = √(6/(m + n)): variance 2/(m + n)  (Glorot & Bengio 2010, eq. 16)
    glorot-normal   N(0, 2/(m + n))
    he              N(0, 2/m)                                       (He et al. 2015, eq. 10)
    lecun           N(0, 1/m)                                       (LeCun et al. 1998, §4.6)
    orthogonal      √s_w Q, Q with orthonormal rows or columns      (Saxe et al. 2014)
    sparse          k = min(15, m) entries of each row N(0, s_w/k), the others 0  (Martens 2010, §5)
    random-walk     N(0, g²/m), g such that the log-norm of a back-propagated vector has no drift,
                    exactly at width m                              (Sussillo & Abbott 2014)
    standard        N(0, s_w/m), biases N(0, s_b)
    ntk             N(0, 1) in layers that scale themselves: see `NTKLinear`
    ==============  ================================================================================

    Biases are 0 unless s_b > 0.
    """

    name: str = "he"
    """one of `INITS`"""
    weight_variance: float | None = None
    """s_w = σ_w², free for standard and ntk (None: 2), orthogonal (None: 1), sparse (None: k)"""
    bias_variance: float = 0.0
    """s_b = σ_b², free for standard, ntk and orthogonal"""
    activation: str = "relu"
    """what follows the layers; only random-walk reads it, and knows relu and linear"""

    def __post_init__(self) -> None:
        """Refuse unknown names and variances that the name does not leave free."""
        require_choice("init", self.name, INITS)
        if self.weight_variance is not None:
            if self.name not in {"standard", "ntk", "orthogonal", "sparse"}:
                raise ValueError(
                    f"init {self.name!r} fixes its variance, got weight_variance="
                    f"{self.weight_variance}; leave it None or use init 'standard'"
                )
            require_positive("weight_variance", self.weight_variance)
        if self.bias_variance < 0:
            raise ValueError(f"bias_variance must not be negative, got {self.bias_variance}")
        if self.bias_variance > 0 and self.name not in {"standard", "ntk", "orthogonal"}:
            raise ValueError(
                f"init {self.name!r} sets biases to 0, got bias_variance={self.bias_variance}; "
                "use init 'standard', 'ntk' or 'orthogonal'"
            )
        if self.name == "random-walk" and self.activation not in {"relu", "linear"}:
            raise ValueError(
                "init 'random-walk' is derived for the activations relu and linear, got "
                f"{self.activation!r}; use init 'lecun' or 'glorot-uniform'"
            )

    @property
    def scale(self) -> float:
        """s_w of standard, ntk and orthogonal, with its default filled in."""
        if self.weight_variance is not None:
            return self.weight_variance
        return 1.0 if self.name == "orthogonal" else 2.0

    def variance(self, fan_in: int, fan_out: int) -> float:
        """Variance of one weight (under "sparse", of one that is not 0).

        Args:
            fan_in: m, inputs of a unit.
            fan_out: n, units an input feeds.

        Returns:
            The variance by the table above; under "orthogonal" s_w / max(m, n), the mean square
            of an entry.
        """
        match self.name:
            case "glorot-uniform" | "glorot-normal":
                return 2.0 / (fan_in + fan_out)
            case "he":
                return 2.0 / fan_in
            case "lecun":
                return 1.0 / fan_in
            case "orthogonal":
                return self.scale / max(fan_in, fan_out)
            case "sparse":
                connections = min(_SPARSE_CONNECTIONS, fan_in)
                return (self.weight_variance or connections) / connections
            case "random-walk":
                return _random_walk_variance(fan_in, self.activation)
            case "ntk":
                return 1.0
            case _:
                return self.scale / fan_in


def _random_walk_variance(width: int, activation: str) -> float:
    """Solve E log ‖D Wᵀ δ‖² = log ‖δ‖² for the variance v of the entries of W.

    ‖D Wᵀ δ‖²/‖δ‖² is v times a χ² variable with K degrees of freedom, where K = width for linear
    units and K ~ Binomial(width, ½), given K > 0, for rectified ones; E log χ²_K = ψ(K/2) + log 2.
    """
    if activation == "linear":
        degrees = torch.tensor([width], dtype=torch.float64)
        weight = torch.ones_like(degrees)
    else:
        degrees = torch.arange(1, width + 1, dtype=torch.float64)
        log_binomial = (
            math.lgamma(width + 1) - torch.lgamma(degrees + 1) - torch.lgamma(width - degrees + 1)
        )
        weight = (log_binomial - width * math.log(2.0)).exp()
    log_chi2 = torch.digamma(degrees / 2) + math.log(2.0)
    return math.exp(-float((weight * log_chi2).sum() / weight.sum()))


def draw_weight(
    init: Init, shape: tuple[int, ...], *, generator: torch.Generator
) -> Float64[Tensor, "..."]:
    """Draw the weight of one dense or convolutional layer.

    Args:
        init: Name of the law.
        shape: (units, inputs, *kernel), as PyTorch stores it.
        generator: Source of the numbers.

    Returns:
        A float64 tensor of that shape on the generator's device. "orthogonal" costs a QR
        decomposition of the (units, fan_in) matrix, everything else is linear in its size.

    Raises:
        ValueError: If the shape has fewer than two axes.
    """
    if len(shape) < 2:
        raise ValueError(f"a weight has the axes (units, inputs, *kernel), got shape {shape}")
    area = math.prod(shape[2:])
    variance = init.variance(shape[1] * area, shape[0] * area)
    blank = torch.empty(shape, dtype=torch.float64, device=generator.device)
    match init.name:
        case "glorot-uniform":
            bound = math.sqrt(3.0 * variance)
            return blank.uniform_(-bound, bound, generator=generator)
        case "orthogonal":
            return nn.init.orthogonal_(blank, gain=math.sqrt(init.scale), generator=generator)
        case "sparse":
            rows = blank.flatten(1)
            connections = min(_SPARSE_CONNECTIONS, rows.shape[1])
            order = rows.uniform_(generator=generator).argsort(1)[:, :connections]
            values = rows.new_empty(order.shape).normal_(generator=generator)
            return rows.zero_().scatter_(1, order, math.sqrt(variance) * values).view(shape)
        case _:
            return blank.normal_(0.0, math.sqrt(variance), generator=generator)


def materialize(
    module: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Give memory to a module built on the "meta" device, where construction draws nothing.

    Args:
        module: Built under ``torch.device("meta")``; changed in place. Its values are undefined
            until `initialize` has set them.
        dtype: Type of the floating-point parameters and buffers; None keeps what they have.
        device: Where to put it; None is PyTorch's default device.
    """
    if dtype is not None:
        module.to(dtype=dtype)
    module.to_empty(device=torch.get_default_device() if device is None else device)


def dense(
    in_features: int, out_features: int, *, bias: bool, init: Init, generator: torch.Generator
) -> nn.Linear | NTKLinear:
    """Make the dense layer that an initialisation asks for.

    Args:
        in_features: Size of the input's last axis.
        out_features: Units.
        bias: Learn a bias.
        init: "ntk" gives an `NTKLinear`, every other name an `nn.Linear`.
        generator: For the draws of an `NTKLinear` built elsewhere than on "meta".

    Returns:
        The layer. Call under ``torch.device("meta")``: an `nn.Linear` initialises itself from the
        global random state anywhere else.
    """
    if init.name != "ntk":
        return nn.Linear(in_features, out_features, bias=bias)
    return NTKLinear(
        in_features,
        out_features,
        bias=bias,
        weight_variance=init.scale,
        bias_variance=init.bias_variance,
        generator=generator,
    )


@torch.no_grad()
def initialize(
    module: nn.Module,
    init: Init | str,
    *,
    generator: torch.Generator,
    blocks: Mapping[str, int] | None = None,
) -> None:
    """Set every parameter of a module, layer by layer in the order of `named_modules`.

    Dense and convolutional weights follow `init`; biases are 0 or N(0, s_b). Normalisation layers
    get scale 1, shift 0 and fresh averages. Embeddings are N(0, 0.02²). Each gate of an `nn.LSTM`
    and each projection of an `nn.MultiheadAttention` is drawn as a matrix of its own; the
    forget-gate bias of an LSTM is 1 (Gers, Schmidhuber & Cummins 2000; Jozefowicz et al. 2015).

    Args:
        module: Changed in place.
        init: A law or its name.
        generator: Source of the numbers.
        blocks: For weights that stack several matrices by rows, their number by parameter name.

    Raises:
        ValueError: If a parameter belongs to a layer of a kind not named above, or "ntk" meets a
            layer that does not scale itself, or an `NTKLinear` meets another name.
    """
    rule = init if isinstance(init, Init) else Init(name=init)
    stacks = blocks or {}
    for path, layer in module.named_modules():
        if isinstance(layer, _NORMS):
            layer.reset_parameters()
        elif isinstance(layer, NTKLinear):
            if rule.name != "ntk":
                raise ValueError(
                    f"{path or 'the module'} is an NTKLinear, whose weights are N(0, 1) by "
                    f"definition, got init {rule.name!r}; use 'ntk' or nn.Linear layers"
                )
            layer.reset_parameters(generator=generator)
        else:
            for name, parameter in layer.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                _fill(layer, name, parameter, full, rule, stacks.get(full), generator)


def _fill(
    layer: nn.Module,
    name: str,
    parameter: Tensor,
    path: str,
    rule: Init,
    stack: int | None,
    generator: torch.Generator,
) -> None:
    """Set one parameter of a layer that is neither a normalisation nor an `NTKLinear`."""
    if isinstance(layer, nn.Embedding):
        draw = torch.empty(parameter.shape, dtype=torch.float64, device=generator.device)
        parameter.copy_(draw.normal_(0.0, _EMBEDDING_SD, generator=generator))
        if layer.padding_idx is not None:
            parameter[layer.padding_idx].zero_()
        return
    if isinstance(layer, nn.LSTM):
        default = 1 if name.startswith("weight_hr") else 4
    elif isinstance(layer, nn.MultiheadAttention) and name not in {"bias_k", "bias_v"}:
        default = 3 if name == "in_proj_weight" else 1
    elif isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        default = 1
    else:
        raise ValueError(
            f"no initialisation is known for {path} of a {type(layer).__name__}; set it by hand "
            "and call initialize on the parts that hold known layers"
        )
    if rule.name == "ntk":
        raise ValueError(
            f"init 'ntk' is a parameterisation of dense layers and {path} belongs to a "
            f"{type(layer).__name__}; build with NTKLinear (families linear and mlp) or use "
            "init 'standard'"
        )
    if parameter.ndim >= 2:
        count = stack or default
        if parameter.shape[0] % count:
            raise ValueError(f"{path} has {parameter.shape[0]} rows, not a multiple of {count}")
        shape = (parameter.shape[0] // count, *parameter.shape[1:])
        draws = [draw_weight(rule, shape, generator=generator) for _ in range(count)]
        parameter.copy_(torch.cat(draws))
        return
    parameter.zero_()
    if rule.bias_variance > 0:
        draw = torch.empty(parameter.shape, dtype=torch.float64, device=generator.device)
        parameter.copy_(draw.normal_(0.0, math.sqrt(rule.bias_variance), generator=generator))
    if isinstance(layer, nn.LSTM) and name.startswith("bias_ih"):
        # The two biases of a gate add up, so one of them carries the 1.
        parameter[layer.hidden_size : 2 * layer.hidden_size] = 1.0
