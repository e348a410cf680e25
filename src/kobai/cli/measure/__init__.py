"""`kobai measure`: the verb and its tables."""
