"""A part of the report that a plugin brings."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ftbench.results.store import Run


@dataclass(frozen=True)
class ReportTable:
    """What a section shows: a paragraph, and a table of text. All of it is shown as it is, never read as HTML."""

    text: str = ""
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


class ReportSection(ABC):
    """A part of the report. Subclass it in a plugin and return it from `ftbench_report_sections`."""

    name: ClassVar[str]
    """What links to it say, and what no other section is called."""
    title: ClassVar[str]

    @abstractmethod
    def build(self, runs: Sequence[Run]) -> ReportTable | None:
        """Return what it shows of the runs, oldest first; None where it has nothing to show.

        A run has its `result` (see `ftbench.results.result.Result`), its `replies()` and its `metrics()`.
        """
