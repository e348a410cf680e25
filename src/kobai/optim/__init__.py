"""Optimizers: torch's first-order methods by name, and K-FAC."""

from kobai.optim.kfac import KFAC

__all__ = ["KFAC"]
