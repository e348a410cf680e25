"""Traces, diagonals and norms from random vectors, with their standard errors."""
