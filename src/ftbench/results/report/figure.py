"""What the charts are made of: checked by plotly here, drawn by its JavaScript in the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ftbench.results.columns import shown_columns
from ftbench.results.report.lines import Line, Mark, View, short_bytes
from ftbench.results.table import cell, heading

Trace = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A chart: its title and caption, what it shows in words for who cannot see it, its figure, its height in pixels.

    In one that `toggles` series can be hidden; `mark` stands beside the title; `width` is wide, narrow or small; a
    `foreign` one is a plugin's, and its marks are not labelled.
    """

    title: str
    about: str
    figure: dict[str, Any]
    height: int = 380
    caption: str = ""
    toggles: bool = False
    width: str = "wide"
    mark: Mark | None = None
    foreign: bool = False


def make_figure(traces: Sequence[Trace], layout: dict[str, Any]) -> dict[str, Any]:
    """Return a figure of plotly's schema as JSON values.

    Raises:
        ValueError: a trace or the layout is not of that schema.
    """
    import json

    import plotly.graph_objects as go

    margin = {"l": 8, "r": 12, "t": 8, "b": 8}
    figure = go.Figure(list(traces), {"template": {}, "margin": margin, "showlegend": False, **layout})
    made: dict[str, Any] = json.loads(figure.to_json())
    made["layout"].pop("template", None)
    return made


def adopt_figure(given: Any) -> dict[str, Any]:
    """Return a plugin's figure as JSON values, with the page's colours for the traces that name none.

    Raises:
        ValueError: it is not of plotly's schema.
    """
    import json

    import plotly.graph_objects as go

    made: dict[str, Any] = json.loads(go.Figure(given).to_json())
    layout = made["layout"]
    layout.pop("template", None)
    if not {"title", "margin"} & layout.keys():  # the page has a title of its own above
        layout["margin"] = {"l": 8, "r": 12, "t": 8, "b": 8}
    layout.setdefault("colorway", [f"var(--series-{number})" for number in range(1, 8)])
    return made


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis that makes room for its own ticks and title."""
    return {"title": {"text": title, "standoff": 8}, "automargin": True, "zeroline": False, **more}


def share_axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis for shares from 0 to 1, with room for marks at both ends."""
    return axis(title, range=[-0.04, 1.06], tickvals=[0, 0.2, 0.4, 0.6, 0.8, 1], **more)


def bytes_axis(title: str, sizes: Sequence[float], *, from_zero: bool = False, room: float = 1.0) -> dict[str, Any]:
    """Return an axis for bytes, ticks at powers of two; logarithmic where sizes are far apart."""
    low, high = min(sizes), max(sizes) * room
    if from_zero or high < 4 * low:
        step = 2.0 ** math.ceil(math.log2(max(high, 1) / 4))
        ticks = [step * count for count in range(int(high / step) + 1)]
        return axis(
            title, range=[0, high * 1.04], tickvals=ticks, ticktext=[_tick(tick) for tick in ticks], tickangle=0
        )
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    ticks = [2.0**power for power in range(first, last + 1, max(1, (last - first) // 6))]
    span = [math.log10(low / 1.25), math.log10(high * 1.35)]
    return axis(f"{title}, log scale", type="log", range=span, tickvals=ticks, ticktext=[_tick(tick) for tick in ticks])


def _tick(size: float) -> str:
    return short_bytes(size) if size else "0"


def text(value: str) -> str:
    """Return user text as plotly shows it as it is: it reads some markup in what it is given."""
    return escape(value, quote=False)


def finite(value: float | None) -> bool:
    """Whether there is a number to be drawn."""
    return value is not None and math.isfinite(value)


def error_bars(values: Sequence[dict[str, Any]], colour: str) -> dict[str, Any]:
    """Return the intervals of measured values as plotly's error bars."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [_reach(value, "high") for value in values],
        "arrayminus": [_reach(value, "low") for value in values],
        "color": colour,
        "thickness": 1.2,
        "width": 3,
    }


def _reach(value: dict[str, Any], end: str) -> float:
    return abs(value[end] - value["mean"]) if finite(value[end]) else 0.0


def hover(line: Line, view: View) -> str:
    """Return all figures of a row, for the box beside its mark."""
    shown = [
        f"{text(heading(column, view.group.rows).removesuffix(' [95 %]'))}: {text(cell(column, line.row))}"
        for column in shown_columns(view.group.rows, wide=True)
        if column.key not in ("algorithm", "options") and column.value(line.row) is not None
    ]
    return "<br>".join([f"<b>{text(line.label)}</b>", *shown])


def series_trace(series: str, mark: Mark, name: str, **more: Any) -> Trace:
    """Return a trace that is shown and hidden with its series, and labelled in the chart with its name."""
    return {
        "name": text(name),
        "meta": {"series": series, "label": name},
        "hoverinfo": "text",
        "marker": {"color": mark.colour, "symbol": mark.symbol, "size": 9, "line": {"width": 0}},
        **more,
    }
