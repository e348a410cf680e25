"""Optimizers: torch's first-order methods by name, and K-FAC."""

from kobai.optim.catalogue import CONFIGS, KFACConfig, OptimizerConfig, build
from kobai.optim.coverage import Coverage
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
from kobai.optim.kfac import KFAC
from kobai.optim.muon import MuonAdamW

__all__ = [
    "CONFIGS",
    "FIRST_ORDER",
    "KFAC",
    "AdadeltaConfig",
    "AdagradConfig",
    "AdamConfig",
    "AdamWConfig",
    "Coverage",
    "KFACConfig",
    "MomentumConfig",
    "MuonAdamW",
    "MuonConfig",
    "NesterovConfig",
    "OptimizerConfig",
    "RMSpropConfig",
    "SGDConfig",
    "build",
]
