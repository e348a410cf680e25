"""Several processes, one optimizer: statistics are joined, inversions shared out.

Every process holds the whole model and a share of each batch, as under DistributedDataParallel.
Sums for the factors are added up over the processes before they are divided by the normaliser of
all of them, so the factors are those of the joined batch. Each block is inverted by one process
only, chosen by cost, and sent to the others. Gradients are left to whoever averages them already.

Source: Pauloski et al. 2021, KAISA: an adaptive second-order optimizer framework for deep neural
networks (§3, distribution of the inversions).
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from kobai.curvature.blocks import FactorSums, Inversions
from kobai.curvature.blocks.interface import factor_dtype
from kobai.optim.kfac.plan import KroneckerLayer
from kobai.optim.kfac.preconditioner import Preconditioner
from kobai.optim.kfac.stack import Stack
from kobai.optim.kfac.statistics import Sums


def ranks() -> int:
    """Return the number of processes in the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of every process, in the order of ranks; its own where there is one process.

    Args:
        rows: Examples first; processes may have different numbers of them.

    Every process must call it.
    """
    if ranks() == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(ranks())]
    dist.all_gather(counts, count)
    sizes = [int(one) for one in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    pieces = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(pieces, padded)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])


def joined(sums: Sums, blocks: Preconditioner, precision: torch.dtype | None = None) -> Sums:
    """Add up the sums of all processes, the same on each; every process must call it.

    Args:
        sums: What this process gathered, perhaps nothing.
        blocks: The blocks, equal on all processes.
        precision: Precision of sums for Kronecker factors, where it is not the parameters'.

    Cost: two all-reductions, one of as many numbers as all factors have.
    """
    if ranks() == 1:
        return sums
    plan = blocks.plan
    entries = plan.entries
    device = entries[0].tensors[0].device
    # Per entry, whether or how much of it this process has; summed over the processes.
    present, uses, squared_uses, squares, traces, bypassed = range(6)
    table = torch.zeros(len(entries), 6, dtype=torch.float64)
    for position, own in sums.moments.items():
        table[position, present] = 1
        if isinstance(own, FactorSums):
            count = 1 if own.outputs is None or own.outputs.ndim == 3 else own.outputs.shape[0]
            table[position, uses], table[position, squared_uses] = count, count**2
            table[position, traces] = own.traces is not None
    for position in sums.squares:
        table[position, squares] = 1
    for position, entry in enumerate(entries):
        table[position, bypassed] = float(entry.parameters[0] in sums.bypassed)
    totals = torch.tensor([sums.weight, float(sums.passes)], dtype=torch.float64)
    header = _all_reduced(torch.cat([table.flatten(), totals]).to(device)).cpu()
    weight, passes = header[-2:].tolist()
    result = Sums(weight=weight, passes=round(passes))
    pieces: list[Tensor] = []
    takers: list[Callable[[Tensor], None]] = []

    def send(known: Tensor | None, zeros: Tensor, take: Callable[[Tensor], None]) -> None:
        pieces.append(zeros if known is None else known)
        takers.append(take)

    for position, line in enumerate(header[:-2].view(len(entries), 6).tolist()):
        entry, own = entries[position], sums.moments.get(position)
        if line[bypassed]:
            result.bypassed.update(entry.parameters)
        if not line[present]:
            continue
        if not blocks.takes_factors(position):
            zeros = blocks.block(position).empty_moments()
            send(own, zeros, lambda value, i=position: result.moments.__setitem__(i, value))
            continue
        assert isinstance(entry, KroneckerLayer)
        form = entry.form
        together = line[uses] ** 2 == line[present] * line[squared_uses]  # the same on each
        if own is not None and not together:
            own.forget_pairs()
        paired = ()
        if together and line[uses] > line[present]:
            paired = (round(line[uses] / line[present]),) * 2
        dtype = factor_dtype(entry.weight.dtype)
        if precision is not None and not form.lookup:
            dtype = precision
        like = entry.weight.new_zeros((), dtype=dtype)
        made = result.moments[position] = FactorSums()
        shapes = {
            "inputs": (form.inputs,) if form.lookup else (
                *paired, form.groups, form.inputs, form.inputs
            ),
            "outputs": (*paired, form.groups, form.outputs, form.outputs),
        }  # fmt: skip
        for name, shape in shapes.items():
            send(
                None if own is None else getattr(own, name),
                like.new_zeros(shape),
                lambda value, made=made, name=name: setattr(made, name, value),
            )
        send(
            like.new_full((1,), 0.0 if own is None else own.rows),
            like,
            lambda value, made=made: setattr(made, "rows", round(float(value))),
        )
        if line[traces] == line[present]:
            send(
                None if own is None else own.traces,
                like.new_zeros(4, form.groups),
                lambda value, made=made: setattr(made, "traces", value),
            )
        if line[squares]:
            shape = (form.inputs, form.outputs) if form.lookup else (
                form.groups, form.outputs, form.inputs
            )  # fmt: skip
            send(
                sums.squares.get(position),
                like.new_zeros(shape),
                lambda value, i=position: result.squares.__setitem__(i, value),
            )
    for take, total in zip(takers, _added(pieces), strict=True):
        take(total)
    return result


def _added(pieces: Sequence[Tensor]) -> list[Tensor]:
    """Sum each tensor over the processes, in one message per precision."""
    result: list[Tensor] = list(pieces)
    for dtype in dict.fromkeys(piece.dtype for piece in pieces):
        own = [i for i, piece in enumerate(pieces) if piece.dtype == dtype]
        flat = _all_reduced(torch.cat([pieces[i].reshape(-1) for i in own]))
        for i, part in zip(own, flat.split([pieces[i].numel() for i in own]), strict=True):
            result[i] = part.view(pieces[i].shape).clone()
    return result


def _all_reduced(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor


def owners(costs: Sequence[float], count: int) -> list[int]:
    """Share out blocks: the dearest first, each to whoever has least to do so far.

    Args:
        costs: Of each block.
        count: Number of processes.

    Returns:
        The process of each block.
    """
    load = [0.0] * count
    chosen = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        rank = load.index(min(load))
        chosen[index] = rank
        load[rank] += costs[index]
    return chosen


def renew_stack(stack: Stack, damping: Callable[[int], float]) -> Inversions:
    """Recompute the inverses of a stack, here and now."""
    entries = stack.ready()
    if not entries:
        return Inversions()
    return stack.renewed(stack.factor(damping(stack.group), entries))


def shared_renewal(stacks: Sequence[Stack], damping: Callable[[int], float]) -> Inversions:
    """Recompute inverses, each by one of the processes, which must all call this.

    Args:
        stacks: The same on all processes.
        damping: λ by the index of the parameter group.
    """
    together = [stack for stack in stacks if stack.block.shared()]
    entries = [(stack, i) for stack in together for i in stack.ready()]
    count, mine = ranks(), dist.get_rank()
    owner = owners([stack.block.cost for stack, _ in entries], count)
    statuses: dict[tuple[int, int], int] = {}
    for stack in together:
        own = [
            i
            for (other, i), rank in zip(entries, owner, strict=True)
            if other is stack and rank == mine
        ]
        if own:
            found = stack.factor(damping(stack.group), own)
            statuses.update({(id(stack), i): status for i, status in found.items()})
    for rank in range(count):
        theirs = [e for e, r in zip(entries, owner, strict=True) if r == rank]
        _send(theirs, statuses, rank)
    total = Inversions()
    for stack in together:
        total += stack.renewed({i: statuses[id(stack), i] for o, i in entries if o is stack})
    for stack in stacks:
        if stack not in together:
            total += renew_stack(stack, damping)
    return total


def _send(
    entries: Sequence[tuple[Stack, int]], statuses: dict[tuple[int, int], int], rank: int
) -> None:
    """Send one process's results to all others, in one message per precision."""
    for dtype in dict.fromkeys(stack.block.shared()[0].dtype for stack, _ in entries):
        own = [(stack, i) for stack, i in entries if stack.block.shared()[0].dtype == dtype]
        tensors = [tensor[i] for stack, i in own for tensor in stack.block.shared()]
        codes = tensors[0].new_tensor([statuses.get((id(s), i), 0) for s, i in own])
        message = torch.cat([codes, *(tensor.reshape(-1) for tensor in tensors)])
        dist.broadcast(message, rank)
        if rank == dist.get_rank():
            continue
        parts = message.split([len(own), *(tensor.numel() for tensor in tensors)])
        for (stack, i), code in zip(own, parts[0].tolist(), strict=True):
            statuses[id(stack), i] = round(code)
        for tensor, part in zip(tensors, parts[1:], strict=True):
            tensor.copy_(part.view(tensor.shape))
