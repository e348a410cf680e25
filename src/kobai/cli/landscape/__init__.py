"""`kobai landscape`: the verb, its flags, and the points it starts from."""
