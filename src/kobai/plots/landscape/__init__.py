"""Pictures of losses on lines, planes and volumes; public in `kobai.plots`."""
