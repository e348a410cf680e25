"""Muon where it applies and AdamW elsewhere, as one optimizer."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import nn


@final
class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for hidden weight matrices, `torch.optim.AdamW` for the rest.

    Hidden weight matrices are the 2-D parameters other than embeddings and the output layer, which
    is taken to be the last 2-D weight of the model; where that leaves none, all 2-D weights but
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
            muon = torch.optim.Muon(
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
