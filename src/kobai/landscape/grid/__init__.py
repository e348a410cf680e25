"""A grid over directions: its axes, its nodes, the fields there, and which nodes are evaluated."""
