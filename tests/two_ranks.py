"""Two processes of one group, for tests of what is distributed."""

import socket

import torch


def on_two_ranks(worker):
    """Run ``worker(rank, port, queue)`` twice, side by side; what each put under its rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    ranks = [context.Process(target=worker, args=(rank, port, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = dict(queue.get() for _ in ranks)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    return found
