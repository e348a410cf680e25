"""Optimizers: torch's first-order methods by name, K-FAC, and those that take the objective."""

from kobai.curvature.coverage import Coverage
from kobai.optim.catalogue import CONFIGS, KFACConfig, OptimizerConfig, build
from kobai.optim.conjugate_gradient import NonlinearCG
from kobai.optim.coordinate import CoordinateDescent
from kobai.optim.curvature_configs import (
    GaussNewtonConfig,
    HessianFreeConfig,
    NaturalGradientConfig,
)
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
from kobai.optim.ekfac import EKFAC
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
from kobai.optim.full_batch_configs import (
    BFGSConfig,
    CoordinateDescentConfig,
    LBFGSConfig,
    NewtonConfig,
    NonlinearCGConfig,
    SaddleFreeNewtonConfig,
    SteepestDescentConfig,
)
from kobai.optim.gauss_newton import GaussNewton
from kobai.optim.hessian_free import HessianFree
from kobai.optim.kfac import KFAC
from kobai.optim.muon import MuonAdamW
from kobai.optim.natural_gradient import NaturalGradient
from kobai.optim.newton import Newton
from kobai.optim.quasi_newton import BFGS
from kobai.optim.saddle_free import SaddleFreeNewton
from kobai.optim.search import Backtracking, Constant, Exact, LineSearch, StrongWolfe
from kobai.optim.spaces import default_space
from kobai.optim.steepest_descent import SteepestDescent
from kobai.optim.trust_region import TrustRegion

__all__ = [
    "BFGS",
    "CONFIGS",
    "EKFAC",
    "FIRST_ORDER",
    "KFAC",
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
