"""Pictures of spectra, densities and kernels; public in `kobai.plots`."""
