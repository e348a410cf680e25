"""Multi-head attention: three projections and one of the output, with torch's own in between."""

import dataclasses
import re
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kobai.layers.composite import Product, in_precision, multiply
from kobai.layers.form import LayerForm, Slot, slot_of
from kobai.layers.interface import CompositeKind, unchanged


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention(CompositeKind):
    """Multi-head attention as `torch.nn.MultiheadAttention` computes it.

    Attributes:
        types: Classes.
    """

    name = "attention"
    types: tuple[type[nn.Module], ...] = (nn.MultiheadAttention,)
    one_step = False
    unit_families = re.compile(r"((?:q|k|v|bias)_.*)")

    def matches(self, module: nn.Module) -> bool:
        """Tell whether it is of one of the types, with their `forward`."""
        return unchanged(module, self.types)

    def slots(self, module: Any) -> tuple[Slot, ...]:
        """Three projections, joint or apart, and that of the output."""
        width = module.embed_dim
        out = slot_of(module, "out_proj", "out_proj.weight", "out_proj.bias", 1, width, width)
        if module._qkv_same_embed_dim:
            joint = slot_of(module, "in_proj", "in_proj_weight", "in_proj_bias", 3, width, width)
            return joint, out
        # Query, key and value then have weights of their own but one bias between them.
        apart = tuple(
            Slot(
                name=name, weight=name, bias=None,
                form=LayerForm(groups=1, outputs=width, inputs=getattr(module, name).shape[1],
                               bias=False),
            )
            for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        )  # fmt: skip
        return *apart, out

    def replay(
        self, module: Any, parameters: dict[str, Tensor], arguments: dict[str, Any]
    ) -> tuple[Any, list[Product]]:
        """See `CompositeKind.replay`.

        Between the projections it is torch's own attention, with identities in their place: every
        mask and option means what it means there.
        """
        p, dtype = parameters, parameters["out_proj.weight"].dtype
        given = {key: in_precision(value, dtype) for key, value in arguments.items()}
        parts = [given[name] for name in ("query", "key", "value")]
        single = parts[0].ndim == 2
        if single:
            parts = [part.unsqueeze(1) for part in parts]
        elif module.batch_first:
            parts = [part.transpose(0, 1) for part in parts]
        width = module.embed_dim
        joint = module._qkv_same_embed_dim
        weights = p["in_proj_weight"].chunk(3) if joint else [
            p[name] for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        ]  # fmt: skip
        bias = p.get("in_proj_bias")
        biases = [None] * 3 if bias is None else list(bias.chunk(3))
        products: list[Product] = []
        q, k, v = (
            multiply("in_proj" if joint else name, i if joint else None, part, w, b, products, True)
            for i, (name, part, w, b) in enumerate(
                zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), parts, weights, biases,
                    strict=True)
            )
        )  # fmt: skip
        identity = torch.eye(width, dtype=dtype, device=q.device)
        mixed, shares = F.multi_head_attention_forward(
            q, k, v, width, module.num_heads, None, None, p.get("bias_k"), p.get("bias_v"),
            module.add_zero_attn, module.dropout, identity, None, training=module.training,
            key_padding_mask=_batch_mask(given["key_padding_mask"], single),
            need_weights=given["need_weights"], attn_mask=given["attn_mask"],
            use_separate_proj_weight=True, q_proj_weight=identity, k_proj_weight=identity,
            v_proj_weight=identity, average_attn_weights=given["average_attn_weights"],
            is_causal=given["is_causal"],
        )  # fmt: skip
        out = multiply(
            "out_proj", None, mixed, p["out_proj.weight"], p.get("out_proj.bias"), products, True
        )
        if single:
            out = out.squeeze(1)
            shares = None if shares is None else shares.squeeze(0)
        elif module.batch_first:
            out = out.transpose(0, 1)
        return (out, shares), products


def _batch_mask(mask: Tensor | None, single: bool) -> Tensor | None:
    return mask.unsqueeze(0) if single and mask is not None else mask
