"""Two gloo processes share the nodes of a grid and both end with all of it."""

import socket

import numpy as np
import torch
import torch.distributed as dist

import cases
from kobai.landscape import evaluate_plane, random_directions

GRID = {"a": np.linspace(-0.5, 0.5, 7), "b": np.linspace(0, 1, 9)}


def plane_of(folder=None, **options):
    objective = cases.objective("mlp")
    directions = random_directions(objective, generator=torch.Generator().manual_seed(0))
    return evaluate_plane(
        objective, directions, **GRID, folder=folder, fields=("gradient_norm",), **options
    )


def _worker(rank, port, folder, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        asked = []
        stopped = plane_of(folder, stop=lambda: asked.append(1) or (rank == 1 and len(asked) > 1))
        resumed, tolerant = plane_of(folder), plane_of(tol=0.02)
        names = ("loss", "gradient_norm")
        queue.put(
            (
                rank,
                [plane.fields[name] for plane in (stopped, resumed, tolerant) for name in names],
                [all(check.passed for check in plane.checks) for plane in (resumed, tolerant)],
                resumed.note,
            )
        )
    finally:
        dist.destroy_process_group()


def test_two_processes_give_the_plane_of_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    ranks = [
        context.Process(target=_worker, args=(rank, port, tmp_path, queue)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    found = {rank: rest for rank, *rest in (queue.get(), queue.get())}
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    alone = plane_of()
    for rank in range(2):
        (stopped, _, loss, norm, tolerant, _), passed, note = found[rank]
        np.testing.assert_array_equal(stopped, found[0][0][0])  # both know what the other knows
        assert np.isnan(stopped).any()
        done = np.isfinite(stopped)
        np.testing.assert_array_equal(stopped[done], loss[done])
        np.testing.assert_allclose(loss, alone.fields["loss"], rtol=1e-12)
        np.testing.assert_allclose(norm, alone.fields["gradient_norm"], rtol=1e-9)
        np.testing.assert_allclose(tolerant, loss, rtol=0.02)
        assert all(passed)
        assert "2 processes" in note
