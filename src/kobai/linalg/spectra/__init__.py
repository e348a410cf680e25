"""Eigenvalues, spectral densities, and the Krylov bases behind them."""
