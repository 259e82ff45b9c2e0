"""Activations that the backward pass computes again, from others that it keeps anyway.

What a normalisation or a gate puts out is one cheap step away from what went in, which is kept for its own gradient; the
layers behind it would keep it beside that. It is activation checkpointing (Chen et al. 2016) of single steps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_NAME = "_ftbench_again"
"""Under which a tensor holds how it is computed again, and the version of its values that this gives."""


@dataclass(frozen=True)
class _Left:
    """Stands for a tensor that is not kept."""

    compute: Callable[[], Tensor]
    shape: torch.Size


def can_be_computed_again(found: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """Return `found`, which whoever needs it for a backward pass may compute again, to the bit, in place of keeping it.

    Args:
        found: contiguous, and no view of another tensor.
        compute: gives the same values. It may hold what is kept for the backward pass anyway, without its graph.
    """
    if torch.is_grad_enabled():
        setattr(found, _NAME, (compute, found._version))
    return found


@contextmanager
def computing_again() -> Iterator[None]:
    """Keep nothing that can be computed again for the backward pass of what is called inside.

    What was computed last is held until the next: several layers that were given the same tensor ask for it in turn.
    """
    last: list[Any] = [None, None]

    def pack(tensor: Tensor) -> Tensor | _Left:
        whole = tensor if tensor._base is None else tensor._base
        compute, version = getattr(whole, _NAME, (None, None))
        if compute is None or tensor._version != version:
            return tensor
        if tensor.numel() != whole.numel() or not tensor.is_contiguous():
            return tensor
        return _Left(compute, tensor.shape)

    def unpack(kept: Tensor | _Left) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if last[0] is not kept.compute:
            last[:] = kept.compute, None  # the one before goes first
            last[1] = kept.compute()
        return last[1].view(kept.shape)  # type: ignore[no-any-return]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
