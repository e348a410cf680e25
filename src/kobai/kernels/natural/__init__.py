"""Kernels of natural gradients in function space, and how isotropic they are."""
