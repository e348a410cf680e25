"""Results that only the reproduction `true_minimum` makes; public in `kobai.results`."""
