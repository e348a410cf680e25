"""Biases that start elsewhere than at 0: at the statistics of the targets, or off a ReLU's kink."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kobai.models.normalization import BatchNorm, LayerNorm, MeanSubtraction
from kobai.models.parameterization import NTKLinear
from kobai.models.validation import require_choice

__all__ = ["output_layer", "set_hidden_bias", "set_output_bias"]

_SHIFTING = (
    nn.Linear,
    NTKLinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    BatchNorm,
    LayerNorm,
    MeanSubtraction,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
)


def output_layer(model: nn.Module) -> nn.Module:
    """Find the layer whose bias shifts the outputs.

    Args:
        model: Any module whose last registered dense, convolutional or normalisation layer is its
            output, as in all families of this package.

    Returns:
        That layer.

    Raises:
        ValueError: If there is none.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _SHIFTING)]
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no dense, convolutional or normalisation layer whose "
            "bias could be set; set the bias by hand"
        )
    return layers[-1]


def _bias(layer: nn.Module) -> tuple[Tensor, float]:
    """The bias of a layer and the factor with which it enters the output."""
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, Tensor):
        raise ValueError(f"{type(layer).__name__} has no bias to set; build the model with one")
    return bias, layer.bias_scale if isinstance(layer, NTKLinear) else 1.0


@torch.no_grad()
def set_hidden_bias(layers: Iterable[nn.Module], value: float) -> None:
    """Set the biases of the layers that feed an activation.

    A small positive value such as 0.1 keeps most rectified units active at the start. It is not
    meant to go with init "random-walk", which assumes biases of 0. Source: Goodfellow, Bengio &
    Courville 2016, §8.4.

    Args:
        layers: Dense, convolutional or normalisation layers.
        value: The pre-activation's shift; an `NTKLinear` stores it divided by √s_b.

    Raises:
        ValueError: If a layer has no bias.
    """
    for layer in layers:
        bias, scale = _bias(layer)
        bias.fill_(value / scale)


@torch.no_grad()
def set_output_bias(model: nn.Module, targets: Tensor, likelihood_name: str) -> None:
    """Set the output bias so that zero weights would predict the targets' marginal statistics.

    Args:
        model: The network whose output layer, see `output_layer`, is changed in place.
        targets: For "categorical" class indices of any shape, negative ones being ignored, or
            probabilities (..., C); for "bernoulli" values in [0, 1] and for "gaussian" any finite
            values, both (..., C), or without the last axis when C = 1.
        likelihood_name: "categorical" sets log p_c (centred, as softmax ignores a constant),
            "bernoulli" the log-odds log p/(1 − p), "gaussian" the mean.

    A class or bit that never occurs counts as half an example, because log 0 is no bias.

    Raises:
        ValueError: If the likelihood is unknown, the targets do not fit the C outputs or are not
            finite, or the outputs have no bias (also when their batch mean is subtracted).

    Source: Goodfellow, Bengio & Courville 2016, §8.4.
    """
    require_choice("likelihood", likelihood_name, ("categorical", "bernoulli", "gaussian"))
    layer = output_layer(model)
    if isinstance(layer, MeanSubtraction):
        raise ValueError(
            "the outputs have their batch mean subtracted, so no bias can set it; use "
            "normalization 'none' or skip set_output_bias"
        )
    bias, scale = _bias(layer)
    rows = _target_rows(targets, bias.numel(), likelihood_name)
    floor = 0.5 / rows.shape[0]
    if likelihood_name == "categorical":
        logits = rows.mean(0).clamp_min(floor).log()
        value = logits - logits.mean()
    elif likelihood_name == "bernoulli":
        value = torch.logit(rows.mean(0).clamp(floor, 1.0 - floor))
    else:
        value = rows.mean(0)
    bias.copy_(value.div(scale).view(bias.shape))


def _target_rows(targets: Tensor, outputs: int, likelihood: str) -> Tensor:
    """Targets as a float64 matrix (terms, C): one-hot, probabilities, bits or values."""
    if likelihood == "categorical" and not targets.is_floating_point():
        index = targets.flatten().long()
        index = index[index >= 0]
        if index.numel() and int(index.max()) >= outputs:
            raise ValueError(f"got label {int(index.max())} for a model of {outputs} outputs")
        rows = torch.nn.functional.one_hot(index, outputs).double()
    else:
        fits = targets.ndim > 0 and targets.shape[-1] == outputs
        if not fits and outputs != 1:
            raise ValueError(
                f"{likelihood} targets need {outputs} entries on their last axis, one per output; "
                f"got shape {tuple(targets.shape)}"
            )
        rows = targets.double().reshape(-1, outputs)
    if rows.shape[0] == 0 or not bool(rows.isfinite().all()):
        raise ValueError("targets must be finite and not empty to have marginal statistics")
    if likelihood != "gaussian" and (float(rows.min()) < 0 or float(rows.max()) > 1):
        raise ValueError(f"{likelihood} targets must lie in [0, 1]; got others")
    return rows
