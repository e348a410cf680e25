"""Biases set from targets, and the shift of hidden units."""

import math

import pytest
import torch
from torch import nn

from kobai.models import (
    CNNConfig,
    MLPConfig,
    NTKLinear,
    build,
    output_layer,
    set_hidden_bias,
    set_output_bias,
)


def make(config, num_outputs, shape=(4,)) -> nn.Module:
    return build(
        config,
        input_shape=shape,
        num_outputs=num_outputs,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )


def outputs_without_weights(model: nn.Module) -> torch.Tensor:
    """What the model says when its output layer ignores the input."""
    with torch.no_grad():
        output_layer(model).weight.zero_()
    return model.eval()(torch.ones(1, 4, dtype=torch.float64))[0].detach()


def test_categorical_probabilities_are_the_class_frequencies():
    model = make(MLPConfig(widths=(3,)), 3)
    set_output_bias(model, torch.tensor([0, 0, 0, 1, 1, 2, -100]), "categorical")
    p = outputs_without_weights(model).softmax(0)
    torch.testing.assert_close(p, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64) / 6)


def test_soft_targets_and_absent_classes():
    model = make(MLPConfig(widths=(3,)), 3)
    soft = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.5, 0.4]], dtype=torch.float64)
    set_output_bias(model, soft, "categorical")
    torch.testing.assert_close(outputs_without_weights(model).softmax(0), soft.mean(0))
    set_output_bias(model, torch.tensor([0, 0, 1, 1]), "categorical")
    expected = torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64) / 4.5
    torch.testing.assert_close(outputs_without_weights(model).softmax(0), expected)


def test_bernoulli_log_odds_and_gaussian_mean():
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    model = make(MLPConfig(widths=(3,)), 2)
    set_output_bias(model, targets, "bernoulli")
    log_odds = torch.tensor([math.log(3), -math.log(3)], dtype=torch.float64)
    torch.testing.assert_close(outputs_without_weights(model), log_odds)
    set_output_bias(model, targets, "gaussian")
    torch.testing.assert_close(outputs_without_weights(model), targets.double().mean(0))
    single = make(MLPConfig(widths=(3,)), 1)
    set_output_bias(single, torch.tensor([1.0, 2.0, 6.0]), "gaussian")
    assert float(outputs_without_weights(single)) == pytest.approx(3.0)


def test_the_scale_of_an_ntk_layer_and_a_normalised_output_are_seen_through():
    targets = torch.tensor([[1.0, 5.0], [3.0, 9.0]])
    ntk = make(MLPConfig(widths=(3,), init="ntk", bias_variance=0.25), 2)
    assert isinstance(output_layer(ntk), NTKLinear)
    normalised = make(MLPConfig(widths=(3,), normalization="last-batch"), 2)
    assert output_layer(normalised) is normalised.output_norm
    for model in (ntk, normalised):
        set_output_bias(model, targets, "gaussian")
        expected = torch.tensor([2.0, 7.0], dtype=torch.float64)
        torch.testing.assert_close(outputs_without_weights(model), expected)


@pytest.mark.parametrize(
    ("config", "targets", "likelihood", "match"),
    [
        (MLPConfig(), torch.tensor([0, 1]), "poisson", "unknown likelihood 'poisson'"),
        (MLPConfig(), torch.tensor([0, 3]), "categorical", "label 3 for a model of 3 outputs"),
        (MLPConfig(), torch.ones(2, 2), "gaussian", "need 3 entries"),
        (MLPConfig(), torch.ones(2, 3) * torch.nan, "gaussian", "finite"),
        (MLPConfig(), torch.tensor([-100, -100]), "categorical", "not empty"),
        (MLPConfig(), torch.ones(2, 3) * 2, "bernoulli", r"lie in \[0, 1\]"),
        (MLPConfig(normalization="last-mean"), torch.ones(2, 3), "gaussian", "mean subtracted"),
        (MLPConfig(bias=False), torch.ones(2, 3), "gaussian", "no bias"),
    ],
)
def test_wrong_targets_are_refused(config, targets, likelihood, match):
    with pytest.raises(ValueError, match=match):
        set_output_bias(make(config, 3), targets, likelihood)


def test_a_model_without_layers_has_no_output_layer():
    with pytest.raises(ValueError, match="no dense"):
        output_layer(nn.Identity())


@pytest.mark.parametrize(
    ("family", "normalization"),
    [
        *(("mlp", kind) for kind in ("none", "batch", "layer", "last-mean")),
        *(("cnn", kind) for kind in ("none", "batch")),
    ],
)
def test_hidden_bias_shifts_what_the_activation_sees(family, normalization):
    if family == "mlp":
        config = MLPConfig(widths=(6, 5), normalization=normalization, hidden_bias=0.1)
        model, x = make(config, 2), torch.zeros(3, 4, dtype=torch.float64)
    else:
        config = CNNConfig(channels=(6, 5), normalization=normalization, hidden_bias=0.1)
        model = make(config, 2, (1, 8, 8))
        x = torch.zeros(3, 1, 8, 8, dtype=torch.float64)
    seen = []
    model.hidden[0].activation.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0]))
    model.eval()(x)
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], 0.1))
    assert model.output.bias.eq(0).all()


def test_hidden_bias_needs_biases_that_start_at_zero():
    with pytest.raises(ValueError, match="set one of the two to 0"):
        MLPConfig(init="ntk", bias_variance=0.25, hidden_bias=0.1)
    with pytest.raises(ValueError, match="no bias to set"):
        make(MLPConfig(widths=(6,), bias=False, hidden_bias=0.1), 2)


def test_set_hidden_bias_sees_through_the_scale_of_an_ntk_layer():
    layer = make(MLPConfig(widths=(6,), init="ntk", bias_variance=0.25), 2).hidden[0].linear
    set_hidden_bias([layer], 0.1)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(zero), torch.full((1, 6), 0.1, dtype=torch.float64))


def test_hidden_bias_with_random_walk_warns():
    with pytest.warns(UserWarning, match="assumes hidden biases of 0"):
        MLPConfig(init="random-walk", hidden_bias=0.1)
    MLPConfig(init="random-walk")  # silent: warnings are errors in these tests
