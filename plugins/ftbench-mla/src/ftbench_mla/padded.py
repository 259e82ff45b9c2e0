"""Texts of like length side by side: on a processor, one by one, what surrounds the arithmetic takes as long as it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOKENS = 512
"""Of a batch, the padding included; a longer text stands alone."""


@dataclass(frozen=True)
class Batch:
    """`ids` are tokens, `[texts, seq]`, zeros behind the shorter texts; `real`, `[texts, seq]`, is false there.

    Nothing needs to mask that: attention is causal, so that no token of a text sees what stands behind it.
    """

    ids: Tensor
    real: Tensor


def side_by_side(texts: Sequence[Sequence[int]], device: torch.device) -> Iterator[Batch]:
    """Put texts together, the longest first."""
    batch: list[Sequence[int]] = []
    for text in sorted(texts, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > TOKENS:
            yield _padded(batch, device)
            batch = []
        batch.append(text)
    if batch:
        yield _padded(batch, device)


def _padded(texts: Sequence[Sequence[int]], device: torch.device) -> Batch:
    longest = len(texts[0])
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
    lengths = torch.tensor([len(text) for text in texts], device=device)
    return Batch(ids, torch.arange(longest, device=device) < lengths[:, None])
