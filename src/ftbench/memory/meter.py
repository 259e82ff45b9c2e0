"""Peak memory by phase. On CUDA the allocator's own peaks; on the CPU the resident memory of the run's process."""

import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from ftbench.memory.parts import Parts

if TYPE_CHECKING:
    import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


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
        start = perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                import torch

                torch.cuda.synchronize(self.device)
                reserved = torch.cuda.max_memory_reserved(self.device)
                self.reserved[name] = max(self.reserved.get(name, 0), reserved)
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

    def read_peak(self) -> int:
        """Bytes at the highest point since the phase began."""
        if self.device.type == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated(self.device))
        return _resident_peak()

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
