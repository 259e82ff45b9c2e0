"""Live tensor bytes, counted exactly: what stands in memory, by what it is, at the highest point of each moment."""

import gc
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ftbench.memory.parts import Parts


@dataclass(slots=True)
class _Entry:
    size: int
    part: str
    end: "weakref.ref[torch.UntypedStorage]"
    """Kept because it calls back when the storage is freed."""


@dataclass
class _Book:
    """What is live now, and its sums; apart from the mode, because finalizers outlive it."""

    live: dict[int, _Entry] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys((part.name for part in fields(Parts)), 0))
    total: int = 0

    def add(self, key: int, storage: torch.UntypedStorage, part: str) -> None:
        size = storage.nbytes()
        self.live[key] = _Entry(size, part, weakref.ref(storage, lambda _: self.remove(key)))
        self.sums[part] += size
        self.total += size

    def move(self, key: int, part: str) -> None:
        entry = self.live[key]
        self.sums[entry.part] -= entry.size
        self.sums[part] += entry.size
        entry.part = part

    def resize(self, key: int, size: int) -> None:
        entry = self.live[key]
        self.sums[entry.part] += size - entry.size
        self.total += size - entry.size
        entry.size = size

    def remove(self, key: int) -> None:
        entry = self.live.pop(key)
        self.sums[entry.part] -= entry.size
        self.total -= entry.size


class Ledger(TorchDispatchMode):
    """Counts every tensor that an operation makes while the ledger is open, until its storage is freed.

    Works on real and on fake tensors alike, on every device, and sees what autograd does. Storages are counted, not
    tensors: views are free. What a kernel allocates and frees within itself is not a tensor, and not counted.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        """`vocabulary` is how the last dimension of logits is told; without it they are activations."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks: dict[str, Parts] = {}
        self._book = _Book()
        self._vocabulary = vocabulary
        self._moment: str | None = None
        self._highest = 0
        self._followed: list[tuple[int, torch.UntypedStorage]] = []

    @property
    def now(self) -> Parts:
        """What is live."""
        return Parts(**self._book.sums)

    def claim(self, part: str, tensors: Iterable[torch.Tensor | None]) -> None:
        """Say what tensors are, whether they were counted before or not."""
        for tensor in tensors:
            for key in self._enter(tensor, part) if tensor is not None else ():
                self._book.move(key, part)
        self._look()

    def follow(self, part: str, tensors: Iterable[torch.Tensor]) -> None:
        """Say what tensors are whose storages come and go without an operation, as those of gathered weights do."""
        for tensor in tensors:
            for storage in _storages(tensor):
                if storage._cdata not in self._book.live:
                    self._book.add(storage._cdata, storage, part)
                self._book.move(storage._cdata, part)
                self._followed.append((storage._cdata, storage))
        self._look()

    def claim_rest(self, part: str) -> None:
        """Say what all other tensors are that live in this process now."""
        for item in gc.get_objects():
            if issubclass(type(item), torch.Tensor):  # isinstance would wake lazy modules and proxies
                self._enter(item, part)
        self._look()

    def begin(self, name: str | None) -> None:
        """From now on, take the highest point into `peaks[name]`, unless it was higher before; None takes nothing."""
        self._moment = name
        if name is not None:
            self._highest = self.peaks.get(name, Parts()).total
            self._look()

    @contextmanager
    def moment(self, name: str) -> Iterator[None]:
        """Begin a moment, and end with it whatever has begun meanwhile."""
        self.begin(name)
        try:
            yield
        finally:
            self.begin(None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # Fake tensors ask for their device all the time: half of all that is dispatched.
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        for item in (result,) if isinstance(result, torch.Tensor) else tree_iter(result):
            if isinstance(item, torch.Tensor):
                self._enter(item, self._part(item))
        self._look()
        return result

    def _part(self, tensor: torch.Tensor) -> str:
        return "logits" if tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary else "activations"

    def _enter(self, tensor: torch.Tensor, part: str) -> list[int]:
        """Count a tensor's storages, if they are not yet; return what they are known by."""
        keys = []
        for storage in _storages(tensor):
            key: int = storage._cdata
            if key not in self._book.live:
                self._book.add(key, storage, part)
            keys.append(key)
        return keys

    def _look(self) -> None:
        for key, storage in self._followed:
            self._book.resize(key, storage.nbytes())
        if self._moment is not None and self._book.total > self._highest:
            self._highest = self._book.total
            self.peaks[self._moment] = self.now


def _storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """Return what a tensor's values lie in: one storage, of a sparse tensor those of its parts."""
    if hasattr(tensor, "to_local"):  # one of torch's distributed tensors: what of it lies here
        tensor = tensor._local_tensor  # type: ignore[attr-defined]
    if tensor.layout == torch.strided:
        return [tensor.untyped_storage()]
    if tensor.layout == torch.sparse_coo:
        return [part.untyped_storage() for part in (tensor._indices(), tensor._values())]
    return []
