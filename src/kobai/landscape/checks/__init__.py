"""Self-checks: what a surface must satisfy whatever the model is."""
