"""Curvature blocks, one kind a file: moments → average → factor(damping) → multiply, solve."""

from kobai.curvature.blocks.dense import DenseBlock
from kobai.curvature.blocks.diagonal import DiagonalBlock
from kobai.curvature.blocks.eigen import EigenBlock
from kobai.curvature.blocks.factor_sums import FactorSums, Sharing
from kobai.curvature.blocks.interface import Block, Inversions
from kobai.curvature.blocks.kronecker import KroneckerBlock, KroneckerFactors, KroneckerInverse
from kobai.curvature.blocks.shifted_inverse import InverseMethod
from kobai.curvature.blocks.table import TableBlock
from kobai.curvature.blocks.unit import UnitBlock

__all__ = [
    "Block",
    "DenseBlock",
    "DiagonalBlock",
    "EigenBlock",
    "FactorSums",
    "InverseMethod",
    "Inversions",
    "KroneckerBlock",
    "KroneckerFactors",
    "KroneckerInverse",
    "Sharing",
    "TableBlock",
    "UnitBlock",
]
