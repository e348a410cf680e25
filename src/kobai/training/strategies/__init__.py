"""Ways of training beyond one plain run: curricula, pretraining, averaging, augmentation and more.

All of them are public in `kobai.training`.
"""
