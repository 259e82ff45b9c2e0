"""Peak memory by phase. On CUDA the allocator's own peaks; on the CPU the resident memory of the run's process."""

import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from ftbench.memory.parts import Parts

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Highest:
    """Peaks in bytes as a meter takes them; `reserved` is 0 on the CPU."""

    peak: int = 0
    reserved: int = 0


@dataclass
class Meter:
    """Times phases and takes their memory peaks; one for each run.

    `seconds[phase]` adds up over repeated phases; `peak[phase]` is the largest. `peak` is CUDA memory allocated (bytes)
    or, on the CPU, resident memory (bytes); `reserved` is what CUDA's allocator held, and empty on the CPU. So is
    `driver`: what of the card was in use as the driver sees it when a phase ended, contexts, kernels and other
    processes with it; the driver keeps no peak, but the allocator gives nothing back by itself. `tensors` holds the
    live tensors at the highest point of the phases that were counted.
    """

    device: "torch.device"
    seconds: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    driver: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, Parts] = field(default_factory=dict)
    _held: Highest = field(default_factory=Highest, init=False)

    @property
    def kind(self) -> str:
        """What `peak` measures, as it is named in tables."""
        return "CUDA allocated" if self.device.type == "cuda" else "resident"

    def keep_tensors(self, phase: str, peaks: Iterable[Parts]) -> None:
        """Keep the highest of the peaks that were counted in a phase."""
        found = [*peaks, self.tensors.get(phase, Parts())]
        self.tensors[phase] = max(found, key=lambda parts: parts.total)

    @contextmanager
    def counting(self, phase: str, parameters: "Iterable[torch.Tensor]", vocabulary: int | None) -> Iterator[None]:
        """Count the tensors inside, which takes a few percent of the time; kept when it raises, too."""
        from ftbench.memory.ledger import Ledger

        ledger = Ledger(vocabulary)
        ledger.claim("parameters", parameters)
        try:
            with ledger, ledger.moment(phase):
                yield
        finally:
            self.keep_tensors(phase, ledger.peaks.values())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside; the figures are kept when it raises, too."""
        self._reset()
        self._held = Highest()
        start = perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                import torch

                torch.cuda.synchronize(self.device)
                reserved = [self._read().reserved, self._held.reserved, self.reserved.get(name, 0)]
                self.reserved[name] = max(reserved)
                free, total = torch.cuda.mem_get_info(self.device)
                self.driver[name] = max(self.driver.get(name, 0), total - free)
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start
            self.peak[name] = max(self.peak.get(name, 0), self.read_peak())

    def move_seconds(self, phase: str, to: str, seconds: float) -> None:
        """Count a part of a phase's time as another's, if there is any."""
        if seconds:
            self.seconds[phase] -= seconds
            self.seconds[to] = self.seconds.get(to, 0.0) + seconds

    def add_seconds(self, phase: str, seconds: float) -> None:
        """Count what a phase took in another process."""
        self.seconds[phase] += seconds

    def apart(self, work: Callable[[], T]) -> tuple[T, Highest]:
        """Do a part of a phase; return its own peaks beside what it gives. They count in the phase, too."""
        self.hold(self._read())
        self._reset()
        done = work()
        own = self._read()
        self.hold(own)
        return done, own

    def hold(self, highest: Highest) -> None:
        """Let the peaks of the phase under way be no lower than these."""
        before = self._held
        self._held = Highest(max(before.peak, highest.peak), max(before.reserved, highest.reserved))

    def read_peak(self) -> int:
        """Bytes at the highest point since the phase began."""
        return max(self._read().peak, self._held.peak)

    def _read(self) -> Highest:
        if self.device.type == "cuda":
            import torch

            allocated, reserved = torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved
            return Highest(int(allocated(self.device)), int(reserved(self.device)))
        return Highest(_resident_peak())

    def _reset(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
        elif _CLEAR_REFS.exists():
            _CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set size


def _resident_peak() -> int:
    """Peak resident set size in bytes; where the system cannot reset it, that of the process so far."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
