"""Predicted eigenvalues of Fisher matrices and kernels, and the learning rates they allow."""
