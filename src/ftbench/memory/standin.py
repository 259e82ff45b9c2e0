"""Which kind of device tensors are taken to be on: what is planned for a card that is not here is probed without it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_MEANT: ContextVar[str | None] = ContextVar("meant", default=None)


@contextmanager
def standing_in_for(kind: str) -> Iterator[None]:
    """Have tensors inside cut into the pieces that they would be cut into on "cpu" or "cuda", wherever they are."""
    token = _MEANT.set(kind)
    try:
        yield
    finally:
        _MEANT.reset(token)


def kind_of(device: "torch.device") -> str:
    """Return the kind of a device, or of the one that it stands in for."""
    return _MEANT.get() or device.type
