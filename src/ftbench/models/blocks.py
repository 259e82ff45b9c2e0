"""Long tensors worked through a few rows at a time, so that what is made of them on the way stays small."""

from collections.abc import Iterator

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor  # which torch itself has imported


def blocks(rows: Tensor, size: int) -> Iterator[slice]:
    """Yield where each block of so many rows lies.

    Without values, only the blocks that take different memory: the first, the second, beside which something of the
    first still stands, and the last, which may be smaller.

    Args:
        rows: `[rows, ...]`.
        size: rows of a block; the last may have fewer.
    """
    begins = range(0, len(rows), size)
    some = [*begins[:2], *begins[2:][-1:]] if isinstance(rows, FakeTensor) else begins
    return (slice(begin, begin + size) for begin in some)
