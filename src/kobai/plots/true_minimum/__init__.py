"""Pictures that only the reproduction `true_minimum` needs; public in `kobai.plots`."""
