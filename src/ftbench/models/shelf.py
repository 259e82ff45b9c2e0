"""Memory for what is kept from a forward pass to its backward pass, in few large pieces.

C's allocator puts what is kept and what is needed for a moment side by side. Where the one goes a hole stays, and the
next of the same size often does not fit into it, for it is to begin at a multiple of 64 bytes: a quarter of a process's
memory was such holes. What is kept stands apart here, and now and then the holes that are left go back to the system.
"""

from dataclasses import dataclass, field
from weakref import finalize

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor  # which torch itself has imported

from ftbench.memory.fit import trim_heap

SLAB_BYTES = 2**23
"""Memory that is taken at a time, at most, for tensors that are smaller."""
_SHARE = 16
"""A new slab is as large as what one forward pass has put there, divided by this, so that little is taken in vain."""
_WORTH_BYTES = 2**20
"""A slab for several tensors is not smaller."""
TRIM_BYTES = 2**27
"""Each time that so much was put there, freed blocks go back."""
_ALIGNED = 64
"""Bytes at whose multiples tensors begin, as torch's own."""


class Shelf:
    """Slabs of memory that one forward pass after the other fills."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def lend(self) -> "Lease":
        """Return room for one forward pass. It comes back when nothing refers to what was put there any more."""
        lease = Lease(self)
        finalize(lease, _give_back, self._free, lease.slabs)
        return lease

    def slab(self, size: int, wanted: int) -> Tensor:
        """Return a slab of at least so many bytes: the smallest that there is, or a new one, of as many as wanted."""
        fitting = [index for index, slab in enumerate(self._free) if len(slab) >= size]
        if fitting:
            return self._free.pop(min(fitting, key=lambda index: len(self._free[index])))
        self._free.clear()  # of smaller passes: kept beside larger ones they would add up
        return torch.empty(max(size, wanted), dtype=torch.uint8)

    @property
    def nbytes(self) -> int:
        """What is there for the next pass, bytes."""
        return sum(slab.nbytes for slab in self._free)

    def clear(self) -> None:
        """Let go of what nobody uses."""
        self._free.clear()


@dataclass
class Slab:
    """Memory, and how many bytes of it are taken."""

    memory: Tensor
    taken: int = 0


def _give_back(free: list[Tensor], slabs: list[Slab]) -> None:
    free.extend(slab.memory for slab in slabs)


@dataclass(eq=False)
class Lease:
    """Slabs that one forward pass has filled so far."""

    shelf: Shelf
    slabs: list[Slab] = field(default_factory=list)
    filled: int = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy that stands in a slab, as long as the lease is held.

        Args:
            tensor: on the CPU, without gaps between its values.
        """
        size = -(-tensor.nbytes // _ALIGNED) * _ALIGNED
        fake = isinstance(tensor, FakeTensor)  # a plan goes on from a few layers to many in a straight line
        slab = next((one for one in self.slabs if one.taken + size <= len(one.memory)), None)
        if slab is None:
            wanted = min(SLAB_BYTES, self.filled // _SHARE)
            slab = Slab(self.shelf.slab(size, size if fake or wanted < _WORTH_BYTES else wanted))
            self.slabs.append(slab)
        place = slab.memory[slab.taken : slab.taken + tensor.nbytes].view(tensor.dtype)
        slab.taken += size
        if not fake and (self.filled + size) // TRIM_BYTES > self.filled // TRIM_BYTES:
            trim_heap()
        self.filled += size
        return place.as_strided(tensor.shape, tensor.stride(), place.storage_offset()).copy_(tensor)
