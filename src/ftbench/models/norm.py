"""Root-mean-square normalisation in one step: transformers' own keeps five tensors for the backward pass, two float32.

On the CPU it works through a few rows at a time, so that what is in float32 stays in the cache.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ftbench.models.blocks import blocks
from ftbench.models.precision import wide_dtype
from ftbench.models.saved import can_be_computed_again

BLOCK = 2**17
"""Values that are in float32 at a time (512 KiB)."""


class Normalise(torch.autograd.Function):
    """weight * (x / sqrt(mean(x²) + eps)) (arXiv:1910.07467), to the bit as transformers has it.

    An exported model is read by transformers alone: with squares added in another order, half of its greedy replies in
    bf16 would be others than those that were measured.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`x` is `[..., dim]`, `weight` `[dim]`; returned beside `[..., dim]` is 1 / sqrt(...), `[tokens, 1]`."""
        flat = x.reshape(-1, x.shape[-1])
        scale = torch.empty(len(flat), 1, dtype=wide_dtype(x.dtype), device=x.device)
        found = x.new_empty(x.shape)
        for rows in _few(flat):
            wide = flat[rows].to(scale.dtype, copy=True)
            scale[rows] = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
            _scale(wide, scale[rows], weight, found.view(flat.shape)[rows])
        ctx.save_for_backward(x, weight, scale)
        ctx.mark_non_differentiable(scale)
        return found, scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """With n = x * scale and g the gradient: scale * (g w - n mean(g w n)) by x, and the sum of g n by w."""
        x, weight, scale = ctx.saved_tensors
        flat, grad = x.reshape(-1, x.shape[-1]), grads[0].reshape(-1, x.shape[-1])
        wide = weight.to(scale.dtype)
        by_x = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        by_weight = torch.zeros_like(wide) if ctx.needs_input_grad[1] else None
        for rows in _few(flat):
            normal = flat[rows].to(scale.dtype, copy=True).mul_(scale[rows])
            error = grad[rows].to(scale.dtype, copy=True)
            product = error * normal
            if by_weight is not None:
                by_weight += product.sum(0)
            if by_x is not None:
                along = (product @ wide).div_(-len(wide))
                by_x[rows] = error.mul_(wide).addcmul_(normal, along[:, None]).mul_(scale[rows])
        return (
            None if by_x is None else by_x.view(x.shape),
            None if by_weight is None else by_weight.to(weight.dtype),
            None,
        )


def rescaled(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return what `Normalise` has made of `x`, `[..., dim]`, from the scale that it found."""
    flat = x.reshape(-1, x.shape[-1])
    found = torch.empty_like(flat)
    for rows in _few(flat):
        _scale(flat[rows].to(scale.dtype, copy=True), scale[rows], weight, found[rows])
    return found.view(x.shape)


def _scale(wide: Tensor, scale: Tensor, weight: Tensor, found: Tensor) -> None:
    """Write a few rows to `found`; `wide` is used up."""
    found.copy_(wide.mul_(scale))
    found *= weight


def _few(flat: Tensor) -> Iterator[slice]:
    return blocks(flat, max(1, BLOCK // flat.shape[-1]))


def _kernel(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


class RMSNorm(torch.nn.Module):
    """A model's normalisation, with the same parameters."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., dim]`."""
        if x.device.type == "cuda":
            kernel = partial(
                torch.nn.functional.rms_norm, normalized_shape=self.weight.shape, eps=self.variance_epsilon
            )
            return can_be_computed_again(
                kernel(x, weight=self.weight), lambda x, w: kernel(x, weight=w), x, self.weight
            )
        found, scale = Normalise.apply(x, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return can_be_computed_again(found, rescaled, x, self.weight, scale)
