"""Matrices known through their products, those that solve, and what expressions build."""
