"""Optimizers that take the objective: a model of it at a point, and how far the model is trusted."""
