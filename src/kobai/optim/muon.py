"""Muon where it applies and AdamW elsewhere, as one optimizer."""

import functools
import math
from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn


@functools.cache
def has_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 numbers by instructions of its own."""
    return any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


@final
class PlainMuon(torch.optim.Muon):
    """`torch.optim.Muon` that orthogonalises in the precision of the gradient.

    Torch's own does so in bfloat16, which takes seconds a step on processors without instructions
    for it. Settings, state and update are torch's, up to that rounding. Cost of a step: per matrix
    M × K with M ≤ K five times M²(2K + M) multiplications.
    """

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
                update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                update = orthogonalized(
                    update, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                scale = math.sqrt(max(1.0, p.shape[0] / p.shape[1]))
                if group["adjust_lr_fn"] == "match_rms_adamw":
                    scale = 0.2 * math.sqrt(max(p.shape))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * scale)
        return loss


def orthogonalized(
    matrix: Float[Tensor, "M K"],
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
) -> Float[Tensor, "M K"]:
    """About U Vᵀ of a matrix U S Vᵀ, by Newton-Schulz iterations of degree five.

    Args:
        matrix: Any; it is divided by its norm first.
        coefficients: (a, b, c) of X ← aX + b(XXᵀ)X + c(XXᵀ)²X.
        steps: Number of iterations.
        eps: Smallest norm that is divided by.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@final
class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for hidden weight matrices, `torch.optim.AdamW` for the rest.

    Hidden weight matrices are the 2-D parameters other than embeddings and the output layer, which
    is taken to be the last 2-D weight of the model; where that leaves none, all 2-D weights but
    embeddings are hidden. Muon's updates are scaled to AdamW's root mean square
    (``match_rms_adamw``), so that one learning rate serves both; ``param_groups[0]`` is Muon's
    group, ``param_groups[1]`` AdamW's. On CPUs without bfloat16 arithmetic it is `PlainMuon`.

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
            slow = hidden[0].device.type == "cpu" and not has_bfloat16()
            muon = (PlainMuon if slow else torch.optim.Muon)(
                hidden,
                lr=lr,
                momentum=momentum,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._inner.append(muon)
        if rest:
            adamw = torch.optim.AdamW(rest, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay)
            self._inner.append(adamw)
        for optimizer in self._inner:
            groups += optimizer.param_groups
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

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
    """Trainable 2-D parameters that are neither embeddings nor the output layer's weight."""
    embeddings = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for p in module.parameters(recurse=False)
    }
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in embeddings]
    if len(matrices) > 1:
        matrices = matrices[:-1]
    return [p for p in matrices if p.requires_grad]
