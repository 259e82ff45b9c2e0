"""What autograd keeps of a forward pass for the backward pass: copied to a shelf, or computed again.

What a normalisation or a gate puts out is one cheap step away from what went in, which is kept for its own gradient: it
is computed again, to the bit, where layers behind it would keep it beside that. It is activation checkpointing (Chen et
al. 2016) of single steps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor  # which torch itself has imported
from torch.multiprocessing.reductions import StorageWeakRef

from ftbench.models.shelf import Lease, Shelf

_AGAIN = "_ftbench_again"
"""Under which a tensor holds how it is computed again."""

_SMALL_BYTES = 2**10
"""What is smaller stays where it is."""


@dataclass(frozen=True)
class _Again:
    """How a tensor is computed again, from what, and the version of its values that this gives; a mark of its own."""

    mark: object
    compute: Callable[..., Tensor]
    given: tuple[Tensor, ...]
    version: int


def can_be_computed_again(found: Tensor, compute: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """Return `found`, which whoever needs it for a backward pass may compute again in place of keeping it.

    Args:
        found: contiguous, and no view of another tensor.
        compute: gives the same values, called with `given`.
        given: what is kept for the backward pass anyway.
    """
    if torch.is_grad_enabled():
        setattr(found, _AGAIN, _Again(object(), compute, given, found._version))
    return found


@contextmanager
def keeping_little(shelf: Shelf) -> Iterator[None]:
    """Keep what is called inside for its backward pass on a shelf, and nothing that can be computed again."""
    saved = _Saved(shelf.lend())
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        yield


@dataclass(frozen=True)
class _Left:
    """Stands for a tensor that is computed again from what is kept of others."""

    mark: object
    compute: Callable[..., Tensor]
    given: tuple[Any, ...]
    shape: torch.Size


@dataclass(frozen=True)
class _Same:
    """Stands for a tensor that stays where it is, and for the version of its values."""

    tensor: Tensor
    version: int


class _Saved:
    """What is kept of one forward pass."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._known: dict[tuple[Any, ...], tuple[StorageWeakRef, Tensor]] = {}
        self._last: tuple[Any, Tensor | None] = (None, None)

    def pack(self, tensor: Tensor) -> Any:
        """Return what is kept of a tensor."""
        whole = tensor if tensor._base is None else tensor._base
        again: _Again | None = getattr(whole, _AGAIN, None)
        if again is not None and tensor._version == again.version and _is_all_of(tensor, whole):
            return _Left(again.mark, again.compute, tuple(map(self.pack, again.given)), tensor.shape)
        if not _can_be_copied(tensor, whole):
            return _Same(tensor, tensor._version)
        storage = tensor.untyped_storage()
        place = storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version
        if place not in self._known:
            # As long as it is referred to weakly, no other storage is known by its number.
            self._known[place] = StorageWeakRef(storage), self._lease.copy(tensor.detach())
        return self._known[place][1]

    def unpack(self, kept: Any) -> Tensor:
        """Return the tensor. Several layers that were given the same ask for it in turn: the last is held.

        Raises:
            RuntimeError: it was changed in place since, which autograd itself does not look for any more.
        """
        if isinstance(kept, Tensor):
            return kept
        if isinstance(kept, _Same):
            if kept.tensor._version != kept.version:
                raise RuntimeError("a tensor that the backward pass needs was changed in place after the forward pass")
            return kept.tensor
        if self._last[0] is not kept.mark:
            self._last = None, None  # the one before goes first
            self._last = kept.mark, kept.compute(*map(self.unpack, kept.given))
        last = self._last[1]
        assert last is not None
        return last.view(kept.shape)


def _is_all_of(tensor: Tensor, whole: Tensor) -> bool:
    return tensor.numel() == whole.numel() and tensor.is_contiguous()


def _can_be_copied(tensor: Tensor, whole: Tensor) -> bool:
    """Whether a tensor is an activation of some size on the CPU, and has no gaps."""
    if isinstance(whole, torch.nn.Parameter) or type(tensor) not in (Tensor, FakeTensor):
        return False
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.nbytes < _SMALL_BYTES:
        return False
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return reach == tensor.numel()
