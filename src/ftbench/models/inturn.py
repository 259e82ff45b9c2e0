"""Attention on the CPU in float32, sequence by sequence: the work is the sum of the squares of the lengths."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ftbench.models.packing import Block, Packing, mask_of

_FORWARD: Callable[..., tuple[Tensor, Tensor]] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD: Callable[..., tuple[Tensor, Tensor, Tensor]] = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
)
"""What torch's scaled_dot_product_attention calls, sequence by sequence into one output."""


class InTurn(torch.autograd.Function):
    """softmax(scale * query keyᵀ) value within each block, and over its prefix."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        packing: Packing,
        window: int | None,
        scale: float | None,
    ) -> Tensor:
        """Query, key and value are `[1, heads, seq, dim]`; what is returned is `[1, seq, heads, dim]`."""
        found = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
        norms = []
        for block in packing.blocks:
            q, k, v = _of(block, query, key, value)
            output, norm = _FORWARD(q, k, v, 0.0, **_reach(block, window, q), scale=scale)
            found.narrow(1, block.begin, block.length).copy_(output.transpose(1, 2))
            norms.append(norm)
        ctx.save_for_backward(query, key, value, found, *norms)
        ctx.asked = packing, window, scale
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by query, key and value."""
        query, key, value, found, *norms = ctx.saved_tensors
        packing, window, scale = ctx.asked
        by_query, by_key, by_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for block, norm in zip(packing.blocks, norms, strict=True):
            q, k, v = _of(block, query, key, value)
            output, grad = (whole.narrow(1, block.begin, block.length).transpose(1, 2) for whole in (found, grads[0]))
            reach = _reach(block, window, q)
            causal = reach.pop("is_causal")
            of_q, of_k, of_v = _BACKWARD(grad, q, k, v, output, norm, 0.0, causal, **reach, scale=scale)
            by_query.narrow(2, block.begin, block.length).copy_(of_q)
            for whole, part in ((by_key, of_k), (by_value, of_v)):
                whole.narrow(2, block.begin, block.length).add_(part[:, :, block.prefix_length :])
                if block.prefix_length:
                    whole.narrow(2, block.prefix_begin, block.prefix_length).add_(part[:, :, : block.prefix_length])
        return by_query, by_key, by_value, None, None, None


def _of(block: Block, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a block's query, key and value, with its prefix before key and value."""
    q, k, v = (whole.narrow(2, block.begin, block.length) for whole in (query, key, value))
    if block.prefix_length:
        k, v = (
            torch.cat([whole.narrow(2, block.prefix_begin, block.prefix_length), own], dim=2)
            for whole, own in ((key, k), (value, v))
        )
    return q, k, v


def _reach(block: Block, window: int | None, query: Tensor) -> dict[str, Any]:
    """Return what says which keys a block's queries attend to."""
    mask = mask_of(block, window, query.device)
    if mask is None:
        return {"is_causal": True, "attn_mask": None}
    weights = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    return {"is_causal": False, "attn_mask": weights[None, None]}
