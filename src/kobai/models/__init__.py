"""Models: plain `torch.nn.Module` families, built by name, initialised from a generator.

Every model maps a batch of inputs to outputs (N, C). Construction and initialisation leave the
global random state alone.
"""

from kobai.models.activations import ACTIVATIONS, Erf, Maxout, activation
from kobai.models.biases import output_layer, set_hidden_bias, set_output_bias
from kobai.models.cnn import CNN, CNNConfig
from kobai.models.families import FAMILIES, ModelConfig, build, from_factory
from kobai.models.init import INITS, PLAIN_INITS, Init, draw_weight, initialize
from kobai.models.linear import LinearConfig, LinearNet
from kobai.models.lstm import LSTM, LSTMConfig
from kobai.models.mlp import MLP, MLPConfig
from kobai.models.normalization import (
    BatchNorm,
    LayerNorm,
    MeanSubtraction,
    batch_center,
    batch_standardize,
)
from kobai.models.parameterization import NTKLinear
from kobai.models.resnet import ResNet, ResNet50Config, ResNet56Config, ResNetConfig
from kobai.models.transformer import Transformer, TransformerConfig

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "FAMILIES",
    "INITS",
    "LSTM",
    "MLP",
    "PLAIN_INITS",
    "BatchNorm",
    "CNNConfig",
    "Erf",
    "Init",
    "LSTMConfig",
    "LayerNorm",
    "LinearConfig",
    "LinearNet",
    "MLPConfig",
    "Maxout",
    "MeanSubtraction",
    "ModelConfig",
    "NTKLinear",
    "ResNet",
    "ResNet50Config",
    "ResNet56Config",
    "ResNetConfig",
    "Transformer",
    "TransformerConfig",
    "activation",
    "batch_center",
    "batch_standardize",
    "build",
    "draw_weight",
    "from_factory",
    "initialize",
    "output_layer",
    "set_hidden_bias",
    "set_output_bias",
]
