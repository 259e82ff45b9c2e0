"""The progress of all runs in one view: a bar each on a terminal, a line a phase elsewhere."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ftbench.execution.events import START, Event, PhaseBegan, Traced
from ftbench.memory.budget import format_bytes

_UNITS = {"train": "tokens", "evaluate": "prompts"}


class RunsProgress:
    """Shows on standard error how far runs are; may be told from several threads.

    Bars are there while any run is.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, emoji=False)
        self._lock = threading.Lock()
        self._watched = 0
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )

    def say(self, line: str) -> None:
        """Print a line that stays, above the bars."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def watch(self, name: str) -> Iterator[Callable[[Event], None]]:
        """Give what is told the events of one run, which is shown under a name from its first event on."""
        shown = _Shown(name, self._bars, self.say if not self._console.is_terminal else None, self.say)
        self._count(1)
        try:
            yield shown
        finally:
            shown.remove()
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            before, self._watched = self._watched, self._watched + more
            if not before:
                self._bars.start()
            elif not self._watched:
                self._bars.stop()


class _Shown:
    """One run among those that are shown."""

    def __init__(
        self, name: str, bars: Progress, say_phase: Callable[[str], None] | None, say: Callable[[str], None]
    ) -> None:
        self._name = name
        self._bars = bars
        self._say_phase = say_phase
        self._say = say
        self._bar: TaskID | None = None

    def remove(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Traced):
            self._say(f"{self._name}: {event.line}")
            return
        if self._bar is None:
            self._bar = self._bars.add_task(f"{self._name}: start", total=None, figures="")
        if isinstance(event, PhaseBegan):
            self._begin(self._bar, event)
            return
        figures = []
        if event.loss is not None:
            figures.append(f"loss {event.loss:.3f}")
        if event.tokens_per_second is not None:
            figures.append(f"{event.tokens_per_second:.0f} tokens/s")
        if event.memory is not None:
            figures.append(format_bytes(event.memory))
        self._bars.update(self._bar, completed=event.done, figures="  ".join(figures))

    def _begin(self, bar: TaskID, event: PhaseBegan) -> None:
        unit = _UNITS.get(event.phase, "")
        described = f"{self._name}: {event.phase} {unit}".rstrip()
        self._bars.reset(bar, total=event.total, description=described, figures="")
        if self._say_phase and event.phase != START:
            self._say_phase(f"{self._name}: {event.phase}" + (f" ({event.total:,} {unit})" if event.total else ""))
