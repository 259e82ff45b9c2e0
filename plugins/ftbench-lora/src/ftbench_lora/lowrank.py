"""A linear layer with a low-rank adapter beside it, in one step.

peft's own makes the adapter's output, its scaled copy and the sum, each as large as the layer's output, and as many
nodes for the backward pass.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LowRank(torch.autograd.Function):
    """x Wᵀ + bias + scale (x Aᵀ) Bᵀ (Hu et al. 2021, arXiv:2106.09685, equation 3), where W and the bias rest."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        """`x` is `[..., in]`, `weight` `[out, in]`, `bias` `[out]`, `down` (A) `[rank, in]`, `up` (B) `[out, rank]`."""
        flat = x.reshape(-1, x.shape[-1])
        narrow = flat @ down.T
        found = torch.nn.functional.linear(flat, weight, bias).addmm_(narrow, up.T, alpha=scale)
        ctx.save_for_backward(x, weight, down, up, narrow)
        ctx.scale = scale
        return found.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by x, A and B."""
        x, weight, down, up, narrow = ctx.saved_tensors
        flat, grad = x.reshape(-1, x.shape[-1]), grads[0].reshape(-1, weight.shape[0])
        by_narrow = (grad @ up).mul_(ctx.scale)
        by_x = (grad @ weight).addmm_(by_narrow, down).view(x.shape) if ctx.needs_input_grad[0] else None
        by_down = by_narrow.T @ flat if ctx.needs_input_grad[3] else None
        by_up = (grad.T @ narrow).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return by_x, None, None, by_down, by_up, None


def use_low_rank(model: "PreTrainedModel") -> "PreTrainedModel":
    """Give a model this step where peft's plain LoRA stands beside linear layers; return it."""
    from peft.tuners.lora import Linear

    class LowRankLinear(Linear):
        """peft's layer."""

        def forward(self, x: Tensor, *given: Any, **named: Any) -> Tensor:
            """Return `[..., out]`; as peft does in all but the plain case."""
            adapter = None if given or named or self.disable_adapters or self.merged else _plain(self, x)
            if adapter is None:
                return super().forward(x, *given, **named)
            base, down, up = self.get_base_layer(), self.lora_A[adapter], self.lora_B[adapter]
            return LowRank.apply(  # type: ignore[no-any-return,no-untyped-call]
                x, base.weight, base.bias, down.weight, up.weight, self.scaling[adapter]
            )

    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = LowRankLinear
    return model


def _plain(layer: Any, x: Tensor) -> str | None:
    """Return the name of a layer's one adapter, if there is nothing about it but A, B and the scale.

    Under autocast precisions are torch's business, step by step.
    """
    if torch.is_autocast_enabled(x.device.type):
        return None
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(active) != 1 or active[0] in layer.lora_variant:
        return None
    name, base = active[0], layer.get_base_layer()
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    plain = type(base) is torch.nn.Linear and type(down) is type(up) is torch.nn.Linear and up.bias is None
    rests = plain and not base.weight.requires_grad and (base.bias is None or not base.bias.requires_grad)
    alike = rests and x.dtype == base.weight.dtype == down.weight.dtype == up.weight.dtype
    unchanged = isinstance(dropout, torch.nn.Identity) or not layer.training
    return name if alike and unchanged else None
