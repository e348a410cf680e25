"""Seconds a point that loss-landscapes takes, for `landscape.py --peer`.

Runs in an environment of its own:

    python -m venv PEER
    PEER/bin/pip install --no-deps loss-landscapes==3.0.6
    PEER/bin/pip install -c constraints.txt torch numpy jaxtyping

The plane is its `random_plane` with the loss over all data in one batch, as its documentation
shows, and directions normalised as a whole: its filter normalisation divides by zero where biases
are zero. Prints one number: process seconds a point, on one thread.

    PYTHONPATH=src PEER/bin/python benchmarks/landscape_peer.py FILE SIDE

FILE: (model, inputs, labels), pickled. SIDE: nodes along each side.
"""

import sys
import time

import loss_landscapes  # pyright: ignore[reportMissingImports]
import loss_landscapes.metrics  # pyright: ignore[reportMissingImports]
import torch
import torch.nn.functional as F


def main() -> None:
    torch.set_num_threads(1)
    model, x, y = torch.load(sys.argv[1], weights_only=False)
    side = int(sys.argv[2])
    metric = loss_landscapes.metrics.Loss(F.cross_entropy, x, y)
    start = time.process_time()
    loss_landscapes.random_plane(model, metric, 1, side, normalization="model", deepcopy_model=True)
    print((time.process_time() - start) / side**2)


if __name__ == "__main__":
    main()
