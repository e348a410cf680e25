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

from kobai.curvature.blocks.factor_sums import FactorSums
from kobai.optim.averages import factor_dtype
from kobai.optim.blocks import Blocks, Stack
from kobai.optim.coverage import Plan
from kobai.optim.inversions import Inversions
from kobai.optim.statistics import Sums


def ranks() -> int:
    """Number of processes in the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def joined(sums: Sums, plan: Plan, precision: torch.dtype | None = None) -> Sums:
    """The sums of all processes, the same on each; every process must call it.

    Args:
        sums: What this process gathered, perhaps nothing.
        plan: The blocks, equal on all processes.
        precision: Of sums for Kronecker factors, where it is not that of the parameters.

    Cost: two all-reductions, one of as many numbers as all factors have.
    """
    if ranks() == 1:
        return sums
    device = _device(plan)
    count = len(plan.layers)
    # One line a layer: present, uses, uses², squares present, bypassed, traces present.
    table = torch.zeros(count, 6, dtype=torch.float64)
    for position, own in sums.layers.items():
        uses = 1 if own.outputs is None or own.outputs.ndim == 3 else own.outputs.shape[0]
        table[position, :3] = torch.tensor([1.0, uses, uses**2], dtype=torch.float64)
        table[position, 5] = own.traces is not None
    for position in sums.squares:
        table[position, 3] = 1
    for position, layer in enumerate(plan.layers):
        table[position, 4] = float(layer.parameters[0] in sums.bypassed)
    small = [
        [float(i in sums.units) for i in range(len(plan.units))],
        [float(unit.parameters[0] in sums.bypassed) for unit in plan.units],
        [float(i in sums.diagonals) for i in range(len(plan.diagonals))],
        [sums.weight, float(sums.passes)],
    ]
    flags = [flag for part in small for flag in part]
    header = torch.cat([table.flatten(), torch.tensor(flags, dtype=torch.float64)])
    header = _all_reduced(header.to(device)).cpu()
    table = header[: table.numel()].view(count, 6)
    rest = header[table.numel() :].split([len(part) for part in small])
    result = Sums(weight=float(rest[3][0]), passes=round(float(rest[3][1])))
    for marks, entries in ((table[:, 4], plan.layers), (rest[1], plan.units)):
        for flag, entry in zip(marks.tolist(), entries, strict=True):
            if flag:
                result.bypassed.update(entry.parameters)
    pieces: list[Tensor] = []
    takers: list[Callable[[Tensor], None]] = []
    for position, line in enumerate(table.tolist()):
        present, uses, squares, corrected, _, traced = line
        if not present:
            continue
        layer = plan.layers[position]
        form, own = layer.form, sums.layers.get(position)
        together = uses * uses == present * squares  # the same number of uses everywhere
        if own is not None and not together:
            own.forget_pairs()
        paired = (round(uses / present),) * 2 if together and uses > present else ()
        dtype = factor_dtype(layer.weight.dtype)
        if precision is not None and not form.lookup:
            dtype = precision
        like = layer.weight.new_zeros((), dtype=dtype)
        entry = result.layers[position] = FactorSums()
        shapes = {
            "inputs": (form.inputs,) if form.lookup else (
                *paired, form.groups, form.inputs, form.inputs
            ),
            "outputs": (*paired, form.groups, form.outputs, form.outputs),
        }  # fmt: skip
        for name, shape in shapes.items():
            known = None if own is None else getattr(own, name)
            pieces.append(like.new_zeros(shape) if known is None else known)
            takers.append(lambda value, entry=entry, name=name: setattr(entry, name, value))
        pieces.append(like.new_full((1,), 0.0 if own is None else own.rows))
        takers.append(lambda value, entry=entry: setattr(entry, "rows", round(float(value))))
        if traced == present:
            pieces.append(
                like.new_zeros(4, form.groups) if own is None or own.traces is None else own.traces
            )
            takers.append(lambda value, entry=entry: setattr(entry, "traces", value))
        if corrected:
            shape = (form.inputs, form.outputs) if form.lookup else (
                form.groups, form.outputs, form.inputs
            )  # fmt: skip
            pieces.append(sums.squares.get(position, like.new_zeros(shape)))
            takers.append(lambda value, i=position: result.squares.__setitem__(i, value))
    for flag, (position, unit) in zip(rest[0].tolist(), enumerate(plan.units), strict=True):
        if flag:
            first, size = unit.tensors[0], len(unit.tensors)
            zeros = first.new_zeros(first.numel(), size, size, dtype=factor_dtype(first.dtype))
            pieces.append(sums.units.get(position, zeros))
            takers.append(lambda value, i=position: result.units.__setitem__(i, value))
    for flag, (position, single) in zip(rest[2].tolist(), enumerate(plan.diagonals), strict=True):
        if flag:
            dtype = factor_dtype(single.parameter.dtype)
            zeros = torch.zeros_like(single.parameter, dtype=dtype, requires_grad=False)
            pieces.append(sums.diagonals.get(position, zeros))
            takers.append(lambda value, i=position: result.diagonals.__setitem__(i, value))
    for take, total in zip(takers, _added(pieces), strict=True):
        take(total)
    return result


def _added(pieces: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over the processes, in one message a precision."""
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


def _device(plan: Plan) -> torch.device:
    for layer in plan.layers:
        return layer.weight.device
    for unit in plan.units:
        return unit.tensors[0].device
    return plan.diagonals[0].parameter.device


def owners(costs: Sequence[float], count: int) -> list[int]:
    """Who inverts what: the dearest first, each to whoever has least to do so far.

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


def invert(blocks: Blocks, damping: Callable[[int], float], shared: bool = True) -> Inversions:
    """Recompute all inverses, each block by one process; see `Blocks.invert`.

    Args:
        blocks: The same on all processes, which must all call this.
        damping: λ by the index of the parameter group.
        shared: Whether the processes share the work; otherwise each does all of it.
    """
    count = ranks() if shared else 1
    if count == 1:
        return blocks.invert(damping)
    entries = [(stack, i) for stack in blocks.stacks for i in stack.ready()]
    owner = owners([stack.cost for stack, _ in entries], count)
    mine, statuses = dist.get_rank(), {}
    for stack in blocks.stacks:
        own = [
            i
            for (other, i), rank in zip(entries, owner, strict=True)
            if other is stack and rank == mine
        ]
        if own:
            found = stack.renew(damping(stack.group), own)
            statuses.update({(id(stack), i): status for i, status in found.items()})
    for rank in range(count):
        theirs = [e for e, r in zip(entries, owner, strict=True) if r == rank]
        _send(theirs, statuses, rank)
    total = Inversions()
    for stack in blocks.stacks:
        known = {i: statuses[id(stack), i] for other, i in entries if other is stack}
        total += stack.settle(known)
    return total + blocks.invert_tables(damping)


def _send(
    entries: Sequence[tuple[Stack, int]], statuses: dict[tuple[int, int], int], rank: int
) -> None:
    """One process's results to all others, in one message a precision."""
    for dtype in dict.fromkeys(stack.shared()[0].dtype for stack, _ in entries):
        own = [(stack, i) for stack, i in entries if stack.shared()[0].dtype == dtype]
        tensors = [tensor[i] for stack, i in own for tensor in stack.shared()]
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
