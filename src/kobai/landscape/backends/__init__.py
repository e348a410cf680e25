"""Ways to compute a loss at many points of a subspace, and the choice of the fastest."""
