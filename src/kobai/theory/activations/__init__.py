"""Activations as theory sees them, one kind of Gaussian averages per file."""
