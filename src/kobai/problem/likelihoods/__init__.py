"""Likelihoods: what a network's outputs mean, one family per file."""
