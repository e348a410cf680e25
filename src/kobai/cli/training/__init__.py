"""The verbs that train: `kobai compare` with its suite, `kobai train` and `kobai tune`."""
