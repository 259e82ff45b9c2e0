"""A gated feed-forward layer that keeps two tensors for the backward pass where transformers' own keeps four."""

from typing import Any

import torch
from torch import Tensor

from ftbench.models.saved import can_be_computed_again


class Gate(torch.autograd.Function):
    """silu(gate) * up (Shazeer 2020, arXiv:2002.05202); silu(gate) is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """Both are of one shape."""
        ctx.save_for_backward(gate, up)
        return gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients by gate and up."""
        gate, up = ctx.saved_tensors
        opened = torch.nn.functional.silu(gate)
        by_up = grads[0] * opened
        return torch.ops.aten.silu_backward(torch.mul(grads[0], up, out=opened), gate), by_up


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up."""
    return torch.nn.functional.silu(gate).mul_(up)


class GatedMLP(torch.nn.Module):
    """A model's feed-forward layer, with the same parts."""

    gate_proj: torch.nn.Module
    up_proj: torch.nn.Module
    down_proj: torch.nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Transform `[..., dim]`."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        found = Gate.apply(gate, up)  # type: ignore[no-untyped-call]
        return self.down_proj(can_be_computed_again(found, gated, gate, up))  # type: ignore[no-any-return]
