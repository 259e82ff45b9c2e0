"""Memory for what is kept from a forward pass to its backward pass, in few large pieces.

C's allocator puts what is kept and what is needed for a moment side by side. Where the one goes a hole stays, and the
next of the same size often does not fit into it, for it is to begin at a multiple of 64 bytes: a quarter of a process's
memory was such holes. What is kept stands apart here, and now and then the holes that are left go back to the system.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor  # which torch itself has imported

from ftbench.memory.fit import trim_heap

SLAB_BYTES = 2**25
"""Memory that is taken at a time, at most, for tensors that are smaller: what is left at its end is empty."""
_SHARE = 16
"""A new slab is as large as what one forward pass has put there, divided by this, so that little is taken in vain."""
_WORTH_BYTES = 2**20
"""A slab for several tensors is not smaller."""
TRIM_BYTES = 2**27
"""Each time that so much was put there, freed blocks go back."""
_ALIGNED = 64
"""Bytes at whose multiples tensors begin, as torch's own."""


class Shelf:
    """Slabs of memory that one forward pass after the other fills. One that nothing stands in any more is free."""

    def __init__(self) -> None:
        self._slabs: list[Tensor] = []

    def lend(self) -> "Lease":
        """Return room for one forward pass."""
        return Lease(self)

    def slab(self, size: int, wanted: int) -> Tensor:
        """Return a slab of at least so many bytes: the smallest that is free, or a new one, of as many as wanted."""
        highest = size * 17 // 16  # a slab that is not shared is for a tensor of its size
        free = [slab for slab in self._slabs if _is_free(slab)]
        fitting = [slab for slab in free if size <= len(slab) and (len(slab) <= highest or len(slab) >= _WORTH_BYTES)]
        if fitting:
            return min(fitting, key=len)
        self.clear()  # kept of smaller passes beside larger ones they would add up
        self._slabs.append(torch.empty(max(size, wanted), dtype=torch.uint8))
        return self._slabs[-1]

    @property
    def nbytes(self) -> int:
        """What is there, bytes."""
        return sum(slab.nbytes for slab in self._slabs)

    def clear(self) -> None:
        """Let go of what is free."""
        self._slabs = [slab for slab in self._slabs if not _is_free(slab)]


def _is_free(slab: Tensor) -> bool:
    """Whether nothing refers to a slab's memory but the slab itself, and what is made here to ask for that."""
    return bool(torch._C._storage_Use_Count(slab.untyped_storage()._cdata) == 2)


@dataclass
class Slab:
    """A slab's memory, which is not free as long as this lives, and how many bytes of it are taken."""

    memory: Tensor
    taken: int = 0


@dataclass(eq=False)
class Lease:
    """Slabs that one forward pass has filled so far, and with how many bytes."""

    shelf: Shelf
    slabs: list[Slab] = field(default_factory=list)
    filled: int = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy that stands in a slab.

        Args:
            tensor: on the CPU, without gaps between its values.
        """
        size = -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        fake = isinstance(tensor, FakeTensor)  # a plan goes on from a few layers to many in a straight line
        slab = next((one for one in self.slabs if one.taken + size <= len(one.memory)), None)
        if slab is None:
            wanted = min(SLAB_BYTES, self.filled // _SHARE)
            shared = not fake and wanted >= max(_WORTH_BYTES, 2 * size)  # else a second of this size would not fit
            memory = self.shelf.slab(size, wanted if shared else size)
            slab = Slab(memory.view(-1))
            self.slabs.append(slab)
        place = slab.memory[slab.taken : slab.taken + tensor.nbytes].view(tensor.dtype)
        slab.taken += size
        if not fake and (self.filled + size) // TRIM_BYTES > self.filled // TRIM_BYTES:
            trim_heap()
        self.filled += size
        return place.as_strided(tensor.shape, tensor.stride(), place.storage_offset()).copy_(tensor)
