"""Room for runs on one machine: devices, and the memory that runs may take together."""

import ctypes
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ftbench.errors import UsageError
from ftbench.execution.workers import Stopped

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Where torch and the libraries beside it look for how many threads to compute with."""


class Slots:
    """So many runs at once as there are devices and memory for; whoever came first is served first.

    A run that takes more than what is free keeps its turn: those behind it wait, too, or it would never have room.
    """

    def __init__(self, devices: Sequence[str], memory: int | None = None, runs: int | None = None) -> None:
        """Hand out these devices, and so many bytes of memory, to at most so many runs at once."""
        self._devices = tuple(devices)
        self._free = list(devices)
        self._memory = memory
        self._taken = 0
        self._runs = 0
        self.at_once = len(devices) if runs is None else min(runs, len(devices))
        """How many runs there can be at once, if each takes one device."""
        self._turns: list[object] = []
        self._changed = threading.Condition()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._devices)

    @contextmanager
    def take(self, count: int = 1, memory: int = 0) -> Iterator[tuple[str, ...]]:
        """Wait for `count` devices and `memory` bytes, and hold them; a run alone may have more memory than there is.

        Raises:
            UsageError: there are not so many devices.
            Stopped: `stop` was called.
        """
        if count > len(self):
            raise UsageError(f"a run on {count} devices was asked for, and {len(self)} can be used here")
        devices = self._wait(count, memory)
        try:
            yield devices
        finally:
            with self._changed:
                self._free.extend(devices)
                self._taken -= memory
                self._runs -= 1
                self._changed.notify_all()

    def _wait(self, count: int, memory: int) -> tuple[str, ...]:
        turn = object()
        with self._changed:
            self._turns.append(turn)
            try:
                self._changed.wait_for(lambda: self._stopped or (self._turns[0] is turn and self._fits(count, memory)))
            finally:
                self._turns.remove(turn)
                self._changed.notify_all()
            if self._stopped:
                raise Stopped
            self._free.sort(key=self._devices.index)
            devices, self._free = tuple(self._free[:count]), self._free[count:]
            self._taken += memory
            self._runs += 1
            return devices

    def _fits(self, count: int, memory: int) -> bool:
        alone = len(self._free) == len(self)
        enough = alone or self._memory is None or self._taken + memory <= self._memory
        return enough and len(self._free) >= count and self._runs < self.at_once

    def stop(self) -> None:
        """Serve nobody any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def visible_cards() -> list[str]:
    """Return CUDA's cards that this process may use, by the names that CUDA_VISIBLE_DEVICES takes."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:  # no driver; torch, which takes seconds to import, would find no card either
        return []
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def usable_cores() -> int:
    """Return how many of the processor's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
