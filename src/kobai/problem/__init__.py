"""What goes in: batches, parameters as a vector, likelihoods, objectives, captured layers."""

from kobai.layers import Call, Capture, attach, capture
from kobai.problem.batch import Batch
from kobai.problem.blocks import Block
from kobai.problem.calling import call_arguments, output_tensor
from kobai.problem.examples import Examples
from kobai.problem.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    Likelihood,
    RecoveredTargets,
    as_likelihood,
    register_likelihood,
)
from kobai.problem.objective import Analytic, Objective, WeightedSum
from kobai.problem.parameters import ParameterSpace
from kobai.problem.problem import Problem
from kobai.problem.purity import evaluation_mode, impurities, pure, require_pure
from kobai.problem.risk import EmpiricalRisk
from kobai.problem.surfaces import SURFACES, Surface

__all__ = [
    "SURFACES",
    "Analytic",
    "Batch",
    "Bernoulli",
    "Block",
    "Call",
    "Capture",
    "Categorical",
    "EmpiricalRisk",
    "Examples",
    "Gaussian",
    "Likelihood",
    "Objective",
    "ParameterSpace",
    "Problem",
    "RecoveredTargets",
    "Surface",
    "WeightedSum",
    "as_likelihood",
    "attach",
    "call_arguments",
    "capture",
    "evaluation_mode",
    "impurities",
    "output_tensor",
    "pure",
    "register_likelihood",
    "require_pure",
]
