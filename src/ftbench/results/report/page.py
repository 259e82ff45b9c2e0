"""The page: its sections, put into one HTML file that fetches nothing."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ftbench.errors import FtbenchError
from ftbench.results.report.charts import interval_charts, memory_chart, trade_off_charts, used_parts
from ftbench.results.report.course import budget_chart, loss_charts, midway_charts
from ftbench.results.report.figure import Chart
from ftbench.results.report.lines import View, build_views
from ftbench.results.report.origin import clock, made, places
from ftbench.results.report.replies import reply_sets
from ftbench.results.report.section import Brought
from ftbench.results.report.sheet import budget_matrix, build_sheet, definitions, tiles
from ftbench.results.rows import Asked, Group, build_groups
from ftbench.results.store import Run
from ftbench.results.table import notes, shared_terms

if TYPE_CHECKING:
    from jinja2 import Environment

MANY_RUNS = 200
"""With more runs than this, curves have fewer points and replies are not all there: the page has to stay usable."""


@dataclass(frozen=True)
class Limits:
    """How much goes into the page; None is all."""

    curve_points: int = 60
    reply_seeds: int | None = None
    reply_prompts: int | None = None

    @classmethod
    def of(cls, runs: int) -> "Limits":
        """Return the limits for so many runs."""
        return cls() if runs <= MANY_RUNS else cls(curve_points=20, reply_seeds=1, reply_prompts=24)


@dataclass(frozen=True)
class Report:
    """What the sections are made from."""

    views: Sequence[View]
    shared: dict[str, str]
    limits: Limits


@dataclass(frozen=True)
class Section:
    """A part of the page: its heading, its charts, and what its template shows besides (`data` is for the script)."""

    key: str
    title: str
    charts: Sequence[Chart] = ()
    values: dict[str, Any] = field(default_factory=dict)
    data: Any = None
    folded: bool = False


def _table(view: View, report: Report) -> Section | None:
    values = {"sheet": build_sheet(view), "notes": notes(view.group.rows), "tiles": tiles(view)}
    return Section("table", "Results", values=values)


def _trade_offs(view: View, report: Report) -> Section | None:
    charts = trade_off_charts(view)
    return Section("trade-offs", "What it takes", charts) if charts else None


def _intervals(view: View, report: Report) -> Section | None:
    charts = interval_charts(view)
    return Section("intervals", "Intervals", charts) if charts else None


def _memory(view: View, report: Report) -> Section | None:
    chart = memory_chart(view)
    return Section("memory", "Memory", [chart], {"parts": used_parts(chart)}) if chart else None


def _budgets(view: View, report: Report) -> Section | None:
    chart = budget_chart(view)
    budgets, rows = budget_matrix(view)
    if len(budgets) < 2:
        return None
    return Section("budgets", "Memory budgets", [chart] if chart else [], {"budgets": budgets, "rows": rows})


def _midway(view: View, report: Report) -> Section | None:
    charts = midway_charts(view)
    return Section("midway", "Adherence midway", charts) if charts else None


def _losses(view: View, report: Report) -> Section | None:
    charts = loss_charts(view, report.limits.curve_points)
    return Section("losses", "Loss curves", charts, {"points": report.limits.curve_points}) if charts else None


def _replies(report: Report) -> Section | None:
    limits = report.limits
    sets, missing = reply_sets(report.views, seeds=limits.reply_seeds, prompts=limits.reply_prompts)
    if not sets:
        return None
    values = {"sets": sets, "missing": missing, "limits": limits}
    return Section("replies", "Replies side by side", values=values, data=sets)


def _columns(report: Report) -> Section | None:
    return Section("columns", "What the columns mean", values={"columns": definitions(report.views)})


def _reading(report: Report) -> Section | None:
    return Section("reading", "How to read the intervals")


def _origin(report: Report) -> Section | None:
    values = {"runs": made(report.views), "places": places(report.views)}
    return Section("origin", "How the rows were made", values=values, folded=True)


OF_GROUP: tuple[Callable[[View, Report], Section | None], ...] = (
    _table,
    _trade_offs,
    _intervals,
    _budgets,
    _memory,
    _midway,
    _losses,
)
"""The sections of each group of comparable rows, in order; one that has nothing to show returns None."""

OF_PAGE: tuple[Callable[[Report], Section | None], ...] = (_replies, _columns, _reading, _origin)
"""The sections of the whole page, below the groups."""


def build_page(runs: Sequence[Run], asked: Asked | None = None, brought: Sequence[Brought] = ()) -> str:
    """Make the report of the runs, oldest first, as one HTML document.

    Args:
        runs: to be shown.
        asked: of the table.
        brought: what plugins show of the runs.

    Raises:
        FtbenchError: plotly or jinja2 is not installed, or the log of a run was changed.
        UsageError: a row is asked for that there is none of.
    """
    require_libraries()
    groups = build_groups(runs, asked)
    views = build_views(groups)
    report = Report(views, shared_terms(groups), Limits.of(len(runs)))
    held = [(view, _present(make(view, report) for make in OF_GROUP)) for view in views]
    foreign = [Section(f"plugin-{one.name}", one.title, one.charts, {"table": one.table}) for one in brought]
    below = [*foreign, *_present(make(report) for make in OF_PAGE)]
    return _render(report, held, below, _head(runs, groups))


def _present(sections: Any) -> list[Section]:
    return [section for section in sections if section is not None]


def require_libraries() -> None:
    """Check that what draws the report is installed.

    Raises:
        FtbenchError: it is not.
    """
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise FtbenchError(f'the report needs {error.name}; pip install "ftbench[report]"') from error


def _head(runs: Sequence[Run], groups: Sequence[Group]) -> dict[str, Any]:
    started = sorted(run.result.started for run in runs)
    return {
        "rows": sum(len(group.rows) for group in groups),
        "runs": sum(len(seeds) for group in groups for seeds in group.runs),
        "many": MANY_RUNS if len(runs) > MANY_RUNS else 0,
        "first": clock(started[0]),
        "last": clock(started[-1]),
    }


def _render(
    report: Report, held: Sequence[tuple[View, list[Section]]], below: Sequence[Section], head: dict[str, Any]
) -> str:
    from plotly.offline import get_plotlyjs

    placed = [(f"{view.key}-{section.key}", section) for view, sections in held for section in sections]
    placed += [(section.key, section) for section in below]
    charts = {f"{key}-{number}": chart for key, section in placed for number, chart in enumerate(section.charts)}
    data = {
        "charts": {
            key: {"figure": chart.figure, "toggles": chart.toggles, "foreign": chart.foreign}
            for key, chart in charts.items()
        },
        **{section.key: section.data for section in below if section.data is not None},
    }
    scripts = {"theme": _file("theme.js"), "plotly": get_plotlyjs(), "page": _file("page.js")}
    return (
        _templates()
        .get_template("page.html")
        .render(
            report=report,
            held=held,
            below=below,
            head=head,
            style=_file("style.css"),
            scripts=scripts,
            policy=_policy(scripts.values()),
            data=_json_for_script(data),
        )
    )


def _policy(scripts: Any) -> str:
    """Return a content security policy: these scripts alone run, and nothing at all is fetched."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"


def _json_for_script(value: Any) -> str:
    """Write JSON that can stand within a script element: no text in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _file(name: str) -> str:
    return (files("ftbench.results.report") / name).read_text("utf-8")
