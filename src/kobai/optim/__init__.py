"""Optimizers: torch's first-order methods by name, K-FAC, and those that take the objective."""

from kobai.curvature.coverage import Coverage
from kobai.optim.damping import LevenbergMarquardt
from kobai.optim.domains import (
    Choice,
    Domain,
    Fixed,
    Integer,
    Linear,
    Log,
    When,
    parse_domain,
)
from kobai.optim.entry import OptimizerEntry
from kobai.optim.first_order import (
    FIRST_ORDER,
    AdadeltaConfig,
    AdagradConfig,
    AdamConfig,
    AdamWConfig,
    MomentumConfig,
    MuonConfig,
    NesterovConfig,
    RMSpropConfig,
    SGDConfig,
)
from kobai.optim.kfac import EKFAC, KFAC, KFACConfig, KFACSettings
from kobai.optim.line_search import Backtracking, Constant, Exact, LineSearch, StrongWolfe
from kobai.optim.muon import MuonAdamW
from kobai.optim.registry import CONFIGS, OPTIMIZERS, OptimizerConfig, build, default_space
from kobai.optim.second_order.conjugate_gradient import NonlinearCG, NonlinearCGConfig
from kobai.optim.second_order.coordinate import CoordinateDescent, CoordinateDescentConfig
from kobai.optim.second_order.gauss_newton import GaussNewton, GaussNewtonConfig
from kobai.optim.second_order.hessian_free import HessianFree, HessianFreeConfig
from kobai.optim.second_order.natural_gradient import NaturalGradient, NaturalGradientConfig
from kobai.optim.second_order.newton import Newton, NewtonConfig
from kobai.optim.second_order.quasi_newton import BFGS, BFGSConfig, LBFGSConfig
from kobai.optim.second_order.saddle_free import SaddleFreeNewton, SaddleFreeNewtonConfig
from kobai.optim.second_order.steepest_descent import SteepestDescent, SteepestDescentConfig
from kobai.optim.trust_region import TrustRegion

__all__ = [
    "BFGS",
    "CONFIGS",
    "EKFAC",
    "FIRST_ORDER",
    "KFAC",
    "OPTIMIZERS",
    "AdadeltaConfig",
    "AdagradConfig",
    "AdamConfig",
    "AdamWConfig",
    "BFGSConfig",
    "Backtracking",
    "Choice",
    "Constant",
    "CoordinateDescent",
    "CoordinateDescentConfig",
    "Coverage",
    "Domain",
    "Exact",
    "Fixed",
    "GaussNewton",
    "GaussNewtonConfig",
    "HessianFree",
    "HessianFreeConfig",
    "Integer",
    "KFACConfig",
    "KFACSettings",
    "LBFGSConfig",
    "LevenbergMarquardt",
    "LineSearch",
    "Linear",
    "Log",
    "MomentumConfig",
    "MuonAdamW",
    "MuonConfig",
    "NaturalGradient",
    "NaturalGradientConfig",
    "NesterovConfig",
    "Newton",
    "NewtonConfig",
    "NonlinearCG",
    "NonlinearCGConfig",
    "OptimizerConfig",
    "OptimizerEntry",
    "RMSpropConfig",
    "SGDConfig",
    "SaddleFreeNewton",
    "SaddleFreeNewtonConfig",
    "SteepestDescent",
    "SteepestDescentConfig",
    "StrongWolfe",
    "TrustRegion",
    "When",
    "build",
    "default_space",
    "parse_domain",
]
