"""Results that only the reproduction `wide_networks` makes; public in `kobai.results`."""
