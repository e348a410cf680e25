"""Muon where it applies and AdamW elsewhere, as one optimizer."""

import functools
import math
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kobai.layers import is_kind


@functools.cache
def has_bfloat16() -> bool:
    """Tell if this machine's CPU multiplies bfloat16 numbers by instructions of its own."""
    return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


@final
class HiddenMuon(torch.optim.Optimizer):
    """`torch.optim.Muon`, also for kernels of convolutions and in whatever precision is quick.

    On two-dimensional weights settings, state and update are torch's. Kernels (M, I, …) count as
    matrices M × I·taps, as in the source; torch's own refuses them. Updates are orthogonalised in
    bfloat16, as torch does, on accelerators and CPUs with instructions for it, and in the
    gradient's precision elsewhere, where bfloat16 takes seconds a step. Cost of a step: per matrix
    M × K with M ≤ K five times M²(2K + M) multiplications.

    Args:
        params: Weights of two axes or more.
        lr: Learning rate, times 0.2 √max(M, K): updates have AdamW's root mean square.
        momentum: Nesterov momentum.
        weight_decay: Decoupled weight decay.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks.
    """

    def __init__(
        self, params: list[nn.Parameter], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be non-negative and finite, got {value}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """Make one step; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                matrix = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                if p.device.type != "cpu" or has_bfloat16():
                    matrix = matrix.bfloat16()
                update = orthogonalized(matrix).view_as(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * (0.2 * math.sqrt(max(matrix.shape))))
        return loss


def orthogonalized(
    matrix: Float[Tensor, "M K"],
    coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    steps: int = 5,
) -> Float[Tensor, "M K"]:
    """Compute about U Vᵀ of a matrix U S Vᵀ, by Newton-Schulz iterations of degree five.

    Args:
        matrix: Any; it is divided by its norm first.
        coefficients: (a, b, c) of X ← aX + b(XXᵀ)X + c(XXᵀ)²X. The default ones bring singular
            values between 0.7 and 1.2 in few steps.
        steps: Number of iterations.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@final
class MuonAdamW(torch.optim.Optimizer):
    """Muon for hidden weight matrices, `torch.optim.AdamW` for the rest.

    Hidden weight matrices are the 2-D parameters and kernels of convolutions other than embeddings
    and the output layer, which is taken to be the last of them; where that leaves none, all but
    embeddings are hidden. Muon's updates are scaled to AdamW's root mean square
    (``match_rms_adamw``), so that one learning rate serves both; ``param_groups[0]`` is Muon's
    group, ``param_groups[1]`` AdamW's.

    Args:
        model: The model.
        lr: Learning rate of both.
        momentum: Muon's Nesterov momentum.
        weight_decay: Decoupled weight decay of both.
        beta1: AdamW's decay of the gradient's average.
        beta2: AdamW's decay of the squared gradient's average.

    Raises:
        ValueError: If the model has no trainable parameters, or a number is out of range.

    Source: Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks; Liu et al.
    2025, Muon is scalable for LLM training (§2.2, the common learning rate).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.999,
    ) -> None:
        hidden = hidden_matrices(model)
        chosen = {id(p) for p in hidden}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        if not hidden and not rest:
            raise ValueError(f"{type(model).__name__} has no trainable parameters")
        self._inner: list[torch.optim.Optimizer] = []
        groups: list[dict[str, Any]] = []
        if hidden:
            muon = HiddenMuon(hidden, lr=lr, momentum=momentum, weight_decay=weight_decay)
            self._inner.append(muon)
        if rest:
            adamw = torch.optim.AdamW(rest, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay)
            self._inner.append(adamw)
        for optimizer in self._inner:
            groups += optimizer.param_groups
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse more than the groups made at the start, which belong to one optimizer each.

        Raises:
            ValueError: Always, later.
        """
        if len(self.param_groups) == len(self._inner):
            raise ValueError(
                "MuonAdamW has one group for Muon and one for AdamW; make a new one once all "
                "parameters that are to be trained require gradients"
            )
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer, group in zip(self._inner, self.param_groups, strict=True):
            # This object owns groups and state, so that schedulers, `state_dict` and the rest of
            # torch see one optimizer; the two inner ones only compute.
            optimizer.param_groups = [group]
            optimizer.state = self.state
            optimizer.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_inner": self._inner}


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Find trainable matrices and kernels other than embeddings and the output layer's weight."""
    embeddings, kernels = (
        {
            id(p)
            for module in model.modules()
            if is_kind(module, kind)
            for p in module.parameters(recurse=False)
            if p.ndim > 1
        }
        for kind in ("embedding", "convolution")
    )
    matrices: dict[int, nn.Parameter] = {}
    last = 0  # of all modules, so that an output layer tied to an embedding is seen as the last
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if p.ndim == 2 or id(p) in kernels:
                matrices[id(p)], last = p, id(p)
    hidden = {key: p for key, p in matrices.items() if key not in embeddings}
    if len(hidden) > 1:
        hidden.pop(last, None)
    return [p for p in hidden.values() if p.requires_grad]
