"""A part of the report that a plugin brings."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ftbench.results.store import Run

if TYPE_CHECKING:
    from ftbench.results.report.figure import Chart


@dataclass(frozen=True)
class ReportChart:
    """A chart of a section: `figure` is a `plotly.graph_objects.Figure`, or a dict of its `data` and `layout`.

    The page brings plotly's JavaScript and draws it without a network, in the theme that the reader chooses:
    background, text, axes, and the colours of traces that name none are the page's. A trace may also name one as
    the page's own charts do, for example `var(--series-1)` to `var(--series-7)`. plotly reads some markup in texts:
    escape what others wrote. `about` says what it shows in words, for who cannot see it; `height` is in pixels.
    """

    title: str
    about: str
    figure: Any
    height: int = 380
    caption: str = ""


@dataclass(frozen=True)
class ReportTable:
    """What a section shows: a paragraph, charts, and a table. All text is shown as it is, never read as HTML."""

    text: str = ""
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    charts: tuple[ReportChart, ...] = ()


@dataclass(frozen=True)
class Brought:
    """A section that was built: its table, and its charts as the page draws them."""

    name: str
    title: str
    table: ReportTable
    charts: "tuple[Chart, ...]" = ()

    @classmethod
    def of(cls, section: "type[ReportSection]", table: ReportTable) -> "Brought":
        """Make the charts of what a section returned.

        Raises:
            TypeError: a chart is none.
            ValueError: its figure is not of plotly's schema.
        """
        from ftbench.results.report.figure import Chart, adopt_figure

        for chart in table.charts:
            if not isinstance(chart, ReportChart):
                raise TypeError(f"a chart is {type(chart).__name__}: a ftbench.ReportChart is needed")
        charts = (
            Chart(one.title, one.about, adopt_figure(one.figure), one.height, one.caption, foreign=True)
            for one in table.charts
        )
        return cls(section.name, section.title, table, tuple(charts))


class ReportSection(ABC):
    """A part of the report. Subclass it in a plugin and return it from `ftbench_report_sections`."""

    name: ClassVar[str]
    """What links to it say, and what no other section is called."""
    title: ClassVar[str]

    @abstractmethod
    def build(self, runs: Sequence[Run]) -> ReportTable | None:
        """Return what it shows of the runs, oldest first; None where it has nothing to show.

        A run has its `result` (see `ftbench.results.result.Result`), its `replies()` and its `steps()`.
        """
