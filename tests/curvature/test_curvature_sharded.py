"""Two gloo ranks with half of the data each give the matrices of the whole."""

import socket

import pytest
import torch
import torch.distributed as dist

import cases
from kobai.curvature import GGN, Fisher, Hessian, Sharded
from tolerances import assert_close


def _worker(rank, port, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        found = {}
        for name in ("mlp", "transformer"):
            problem = cases.problem(name)
            whole = next(iter(problem.objective(chunk=99).batches))
            cut = 3
            share = whole.take(slice(0, cut) if rank == 0 else slice(cut, whole.size))
            objective = problem.objective(share)
            for label, matrix in (
                ("hessian", Hessian(objective)),
                ("ggn", GGN(objective)),
                ("layer", Fisher(objective, "layer")),
                ("full", Fisher(objective, "full")),
                ("observed", Fisher(objective, "diagonal", labels="observed")),
            ):
                found[name, label] = Sharded(matrix, objective.weight).dense()
            with pytest.raises(ValueError, match="not the mean"):
                Sharded(Fisher(objective, "kronecker"), objective.weight)
        if rank == 0:
            queue.put({key: value.numpy() for key, value in found.items()})
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one_process():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    ranks = [context.Process(target=_worker, args=(rank, port, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = queue.get()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    for name in ("mlp", "transformer"):
        objective = cases.objective(name)
        assert_close(torch.from_numpy(found[name, "hessian"]), Hessian(objective).dense(), 1e-12)
        assert_close(torch.from_numpy(found[name, "ggn"]), GGN(objective).dense(), 1e-12)
        layer = Fisher(objective, "layer").dense()
        assert_close(torch.from_numpy(found[name, "layer"]), layer, 1e-12)
        full = Fisher(objective, "full").dense()
        assert_close(torch.from_numpy(found[name, "full"]), full, 1e-12)
        observed = Fisher(objective, "diagonal", labels="observed").dense()
        assert_close(torch.from_numpy(found[name, "observed"]), observed, 1e-12)


def test_needs_torch_distributed():
    with pytest.raises(RuntimeError, match="init_process_group"):
        Sharded(GGN(cases.objective("mlp")), 9.0)
