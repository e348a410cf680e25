"""Optimizers that take the objective: a model of it at a point, and a rule of how far to go."""
