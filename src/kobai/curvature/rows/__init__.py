"""Gradients example by example, as rows, and the Gram matrices of such rows."""

from kobai.curvature.rows.interface import DenseRows, Joined, Rows, Stacked
from kobai.curvature.rows.outer_products import EmbeddingRows, OuterRows

__all__ = ["DenseRows", "EmbeddingRows", "Joined", "OuterRows", "Rows", "Stacked"]
