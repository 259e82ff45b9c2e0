"""The progress of a run: a bar on a terminal, a line a phase elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ftbench.execution.events import Event, PhaseBegan, Traced
from ftbench.memory.budget import format_bytes


class RunProgress:
    """Shows the events of one run on standard error."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(f"{name}: start", total=None, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Traced):
            self._console.print(f"{self._name}: {event.line}", highlight=False, markup=False, soft_wrap=True)
            return
        if isinstance(event, PhaseBegan):
            unit = {"train": "tokens", "evaluate": "prompts"}.get(event.phase, "")
            self._bar.reset(
                self._task, total=event.total, description=f"{self._name}: {event.phase} {unit}".rstrip(), figures=""
            )
            if not self._console.is_terminal:
                self._console.print(
                    f"{self._name}: {event.phase}" + (f" ({event.total:,} {unit})" if event.total else ""),
                    highlight=False,
                )
            return
        figures = []
        if event.loss is not None:
            figures.append(f"loss {event.loss:.3f}")
        if event.tokens_per_second is not None:
            figures.append(f"{event.tokens_per_second:.0f} tokens/s")
        if event.memory is not None:
            figures.append(format_bytes(event.memory))
        self._bar.update(self._task, completed=event.done, figures="  ".join(figures))
