"""Iterative solutions of linear systems, and inverses made of them."""
