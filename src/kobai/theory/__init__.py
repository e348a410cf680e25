"""Predictions for wide random networks from plain numbers: no model is trained or evaluated.

NumPy in float64. Numbers theory does not have come back as NaN with a status and notes.
"""

from kobai.theory.activations.activation import (
    GELU,
    Activation,
    Erf,
    LeakyReLU,
    Linear,
    gaussian_average,
)
from kobai.theory.activations.hard_tanh import HardTanh
from kobai.theory.activations.hermite import Smooth
from kobai.theory.activations.lookup import ACTIVATIONS, activation
from kobai.theory.fisher.feature_metric import FeatureMetric, feature_metric
from kobai.theory.fisher.learning_rate import PredictedLearningRate, critical_learning_rate
from kobai.theory.fisher.ntk import NTKStatistics, ntk_statistics
from kobai.theory.fisher.prediction import fisher_statistics
from kobai.theory.fisher.softmax import softmax_averages
from kobai.theory.fisher.statistics import FisherStatistics
from kobai.theory.isometry import (
    CriticalLine,
    IsometrySpectrum,
    free_projection_moments,
    hard_tanh_critical_line,
    isometry_spectrum,
)
from kobai.theory.kernels import InfiniteWidthKernels, infinite_width_kernels
from kobai.theory.layers import Dense, Nonlinearity, Normalize, Residual, layers_of_module
from kobai.theory.linear_skips import (
    ExpectedFactors,
    LinearFactors,
    SkipTerms,
    expected_factors,
    linear_factors,
    skip_terms,
    smallest_eigenvalue_bound,
)
from kobai.theory.mean_field import OrderParameters, order_parameters
from kobai.theory.natural_gradient import (
    NaturalGradientAlpha,
    natural_gradient_alpha,
    tridiagonal_weights,
)
from kobai.theory.network import WideNetwork

__all__ = [
    "ACTIVATIONS",
    "GELU",
    "Activation",
    "CriticalLine",
    "Dense",
    "Erf",
    "ExpectedFactors",
    "FeatureMetric",
    "FisherStatistics",
    "HardTanh",
    "InfiniteWidthKernels",
    "IsometrySpectrum",
    "LeakyReLU",
    "Linear",
    "LinearFactors",
    "NTKStatistics",
    "NaturalGradientAlpha",
    "Nonlinearity",
    "Normalize",
    "OrderParameters",
    "PredictedLearningRate",
    "Residual",
    "SkipTerms",
    "Smooth",
    "WideNetwork",
    "activation",
    "critical_learning_rate",
    "expected_factors",
    "feature_metric",
    "fisher_statistics",
    "free_projection_moments",
    "gaussian_average",
    "hard_tanh_critical_line",
    "infinite_width_kernels",
    "isometry_spectrum",
    "layers_of_module",
    "linear_factors",
    "natural_gradient_alpha",
    "ntk_statistics",
    "order_parameters",
    "skip_terms",
    "smallest_eigenvalue_bound",
    "softmax_averages",
    "tridiagonal_weights",
]
