"""K-FAC in one room: observe → average → refresh → precondition → size → apply → schedule."""

from kobai.optim.kfac.optimizer import EKFAC, KFAC
from kobai.optim.kfac.settings import KFACConfig, KFACSettings

__all__ = ["EKFAC", "KFAC", "KFACConfig", "KFACSettings"]
