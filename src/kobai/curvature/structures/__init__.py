"""How much of a Fisher matrix is kept: one structure a file, each builds one operator."""

from kobai.curvature.blocks.factor_sums import Sharing
from kobai.curvature.structures.chain import Chain, ChainStructure
from kobai.curvature.structures.diagonal import DiagonalStructure
from kobai.curvature.structures.ekfac import EKFACStructure
from kobai.curvature.structures.full import FullStructure
from kobai.curvature.structures.interface import Layer, Structure, layers_of
from kobai.curvature.structures.kronecker import KroneckerStructure
from kobai.curvature.structures.layer import LayerStructure
from kobai.curvature.structures.low_rank import LowRank
from kobai.curvature.structures.tridiagonal import Tridiagonal, TridiagonalStructure
from kobai.curvature.structures.unit import EqualBlocks, UnitStructure

__all__ = [
    "Chain",
    "ChainStructure",
    "DiagonalStructure",
    "EKFACStructure",
    "EqualBlocks",
    "FullStructure",
    "KroneckerStructure",
    "Layer",
    "LayerStructure",
    "LowRank",
    "Sharing",
    "Structure",
    "Tridiagonal",
    "TridiagonalStructure",
    "UnitStructure",
    "layers_of",
]
