"""Results of `kobai.landscape`; public in `kobai.results`."""
