"""When is a module a function of θ, and how to evaluate it as one without leaving a trace.

A training step may be noisy; a function of θ may not. Dropout that is switched on draws random
numbers, and batch normalisation in training mode mixes examples and moves its running statistics:
chunked sums would not equal the whole, and products with curvature matrices would not be linear.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def impurities(module: nn.Module, *, coupled: bool = False) -> list[str]:
    """Reasons why a module is not a function of (θ, one example), naming the submodules.

    Args:
        module: The module in its present mode.
        coupled: Whether kobai's own normalisation layers will use the statistics of the whole
            batch, as pure functions.

    Returns:
        One sentence a reason; empty if the module is pure as far as one can see before running it.
    """
    reasons = []
    for path, part in module.named_modules():
        where = f"{path or '(root)'} ({type(part).__name__})"
        if part.training and _draws(part):
            reasons.append(f"{where} draws random numbers; call .eval() on it")
        if hasattr(part, "coupled_batch"):
            if part.training and not coupled:
                reasons.append(
                    f"{where} uses the statistics of each batch in training mode; call .eval() on "
                    "it, or ask for the full-batch objective by coupled=True"
                )
        elif isinstance(part, nn.modules.batchnorm._NormBase):
            per_example = isinstance(part, nn.modules.instancenorm._InstanceNorm)
            # As torch decides: by the buffers for batches, by the flag for single instances.
            tracks = part.track_running_stats if per_example else part.running_mean is not None
            if part.training and not (per_example and not tracks):
                reasons.append(
                    f"{where} uses and moves batch statistics in training mode; call .eval() on it"
                )
            elif not tracks and not per_example:
                reasons.append(f"{where} keeps no running statistics and mixes examples")
    return reasons


def _draws(part: nn.Module) -> bool:
    """Tell whether a stock module draws random numbers in training mode."""
    if isinstance(part, nn.modules.dropout._DropoutNd):
        return part.p > 0
    if isinstance(part, nn.RNNBase):
        return part.dropout > 0 and part.num_layers > 1
    if isinstance(part, nn.MultiheadAttention):
        return part.dropout > 0
    return isinstance(part, nn.RReLU)


def require_pure(module: nn.Module, *, coupled: bool = False) -> None:
    """Raise `ValueError` naming each submodule that is not a function of θ in its mode."""
    reasons = impurities(module, coupled=coupled)
    if reasons:
        raise ValueError(
            "the module is not a function of its parameters now: "
            + "; ".join(reasons)
            + ". The closure objective() runs it natively all the same."
        )


@contextlib.contextmanager
def pure(module: nn.Module, *, coupled: bool = False) -> Iterator[None]:
    """Evaluate a module as a function of θ: twice differentiable, repeatable, without a trace.

    Inside, attention runs through its mathematical kernel and recurrent layers through kernels
    that autograd can differentiate twice (the fused ones cannot); kobai's normalisation layers use
    full-batch statistics if `coupled`. Afterwards the module and the global random state are as
    before.

    Raises:
        ValueError: If the module is not pure, or drew random numbers while it ran.
    """
    require_pure(module, coupled=coupled)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(exact_kernels(module))
        if coupled:
            stack.enter_context(coupled_statistics(module))
        before = _random_state(device)
        moved = False
        try:
            yield
        finally:
            after = _random_state(device)
            moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
            if moved:
                _restore_random_state(device, before)
        if moved:
            raise ValueError(
                "the module drew random numbers while it was evaluated as a function of its "
                "parameters (functional dropout or noise?); switch that off in eval mode"
            )


@contextlib.contextmanager
def exact_kernels(module: nn.Module) -> Iterator[None]:
    """Run attention and recurrent layers through kernels that autograd differentiates twice.

    Recurrent layers are what oneDNN and cuDNN are switched off for, so a model without any keeps
    them for its convolutions.
    """
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn) if recurrent else ()
    enabled = [backend.enabled for backend in backends]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        for backend in backends:
            backend.enabled = False
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for backend, value in zip(backends, enabled, strict=True):
            backend.enabled = value


@contextlib.contextmanager
def coupled_statistics(module: nn.Module, *, training: bool = True) -> Iterator[None]:
    """Let kobai's normalisation layers use the statistics of the batch at hand, as pure functions.

    Args:
        module: Holds the layers, which get their own setting back afterwards.
        training: Also those in training mode, which use such statistics anyway, but move their
            running averages.
    """
    switched = [
        (part, part.coupled_batch)
        for part in module.modules()
        if hasattr(part, "coupled_batch") and (training or not part.training)
    ]
    try:
        for part, _ in switched:
            setattr(part, "coupled_batch", True)
        yield
    finally:
        for part, value in switched:
            setattr(part, "coupled_batch", value)


def _random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _restore_random_state(device: torch.device, states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode and give every submodule its own mode back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
