"""Low-rank factors of key and value weights, and how many dimensions each layer gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["plain", "balanced", "fisher"]

RIDGE = 1e-6
"""What is added to the eigenvalues of a moment, as a share of their mean: no direction is quite without weight."""


@dataclass(frozen=True)
class Factors:
    """W = `up` `down`, `[out, n]` and `[n, in]`, their parts in falling order of `loss`, what leaving each out costs.

    `loss`, `[n]`, is in proportion to nats a token, to second order, where the metric is the Fisher's.
    """

    up: Tensor
    down: Tensor
    loss: Tensor

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return the first so many parts of both."""
        return self.up[:, :rank], self.down[:rank]


def factorise(weight: Tensor, inputs: Tensor, weighed: Tensor, fisher: Tensor, metric: Metric, keys: int) -> Factors:
    """Factorise W so that the first r parts are the best of rank r, by a metric.

    Args:
        weight: `[out, in]`, its first `keys` rows those of keys, the others of values; float64.
        inputs: E[x xᵀ], `[in, in]`.
        weighed: the same, of tokens weighed by what the loss says of them.
        fisher: E[g gᵀ], g the gradient by W x, `[out, out]`, of weighed tokens.
        metric: plain: of W alone. balanced: of W x, keys and values scaled to one size. fisher: of the loss, by
            |M^½ (W - W_r) C^½|² with C the inputs' weighed moment and M the gradients'.
        keys: rows of keys.
    """
    ones = torch.ones(len(weight), dtype=torch.float64, device=weight.device)
    if metric == "plain":
        left, left_back = torch.diag(ones), torch.diag(ones)
        right = right_back = torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
    else:
        right, right_back = _root(weighed if metric == "fisher" else inputs)
        if metric == "fisher":
            left, left_back = _root(fisher)
        else:
            norms = (weight @ right).square().sum(1)
            scale = ones.clone()
            if keys and keys < len(weight):
                scale[:keys] = (norms[keys:].mean() / norms[:keys].mean().clamp(min=1e-30)).sqrt()
            left, left_back = torch.diag(scale), torch.diag(1 / scale)
    out, singular, into = torch.linalg.svd(left @ weight @ right, full_matrices=False)
    spread = singular.sqrt()
    return Factors(left_back @ out * spread, spread[:, None] * into @ right_back, singular.square())


def _root(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root of a moment and its inverse."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp(min=0) + RIDGE * values.clamp(min=0).mean() + 1e-30
    return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T


def share_out(losses: Sequence[Tensor], total: int, least: int = 1) -> list[int]:
    """Hand out ranks over all layers: the parts whose loss is largest, wherever they are.

    Args:
        losses: of each layer's parts, falling.
        total: of all ranks together.
        least: that each layer gets.
    """
    every = torch.cat(
        [torch.stack([torch.full_like(loss, index), loss], 1)[least:] for index, loss in enumerate(losses)]
    )
    order = every[:, 1].argsort(descending=True, stable=True)[: max(0, total - least * len(losses))]
    more = torch.bincount(every[order, 0].long(), minlength=len(losses))
    return [least + int(count) for count in more]
