"""Pictures that only the reproduction `wide_networks` needs; public in `kobai.plots`."""
