"""Results of `kobai.curvature` and `kobai.kernels`; public in `kobai.results`."""
