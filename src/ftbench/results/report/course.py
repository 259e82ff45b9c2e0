"""The charts of what changes along the way: losses, adherence midway, and adherence by memory budget."""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ftbench.results.report.figure import Chart, Trace, axis, finite, make_figure, series_trace, share_axis, text
from ftbench.results.report.lines import Line, Mark, View, budget_name
from ftbench.results.result import Checkpoint
from ftbench.results.store import Run

_DASHES = ("solid", "dash", "dot", "dashdot")
_DASH_NAMES = ("solid", "dashed", "dotted", "dash-dotted")
_TARGET = 0.9
"""The adherence that the table's time to 0.9 waits for."""

Point = tuple[float, float]


def loss_charts(view: View, points: int) -> list[Chart]:
    """Draw the losses of each series by themselves, for those of unlike algorithms are not one quantity.

    Args:
        view: the group.
        points: of a curve, at most; each is the mean loss over its share of the tokens.

    Raises:
        FtbenchError: the log of a run was changed.
    """
    charts = []
    for series, mark in view.series().items():
        lines = [line for line in view.lines if line.series == series]
        budgets = _budgets(lines)
        traces = [trace for line in lines for trace in _losses(line, _DASHES[_place(line, budgets)], points)]
        if traces:
            charts.append(_loss_chart(series, mark, lines, traces))
    return charts


def _budgets(lines: Sequence[Line]) -> list[int]:
    return sorted({line.row["memory_budget"] or 0 for line in lines})


def _place(line: Line, budgets: Sequence[int]) -> int:
    return budgets.index(line.row["memory_budget"] or 0) % len(_DASHES)


def _budgets_caption(lines: Sequence[Line]) -> str:
    """Say which way of drawing lines stands for which memory budget, where there are several."""
    budgets = _budgets(lines)
    named = [f"{_DASH_NAMES[place % len(_DASHES)]}: {budget_name(budget)}" for place, budget in enumerate(budgets)]
    return f"Lines: {', '.join(named)}." if len(named) > 1 else ""


def _loss_chart(series: str, mark: Mark, lines: Sequence[Line], traces: Sequence[Trace]) -> Chart:
    layout = {
        "xaxis": axis("tokens", tickformat="~s", nticks=4, rangemode="tozero"),
        "yaxis": axis("loss", nticks=5),
        "hovermode": "closest",
    }
    return Chart(
        series,
        f"Training loss of {series} by tokens trained on.",
        make_figure(traces, layout),
        200,
        _budgets_caption(lines),
        width="small",
        mark=mark,
    )


def _losses(line: Line, dash: str, points: int) -> Iterator[Trace]:
    """Yield a trace for each run and stage of its training."""
    for run in line.ok():
        name = f"seed {run.result.recipe.seed}" if len(line.runs) > 1 else line.label
        steps = [step for step in run.steps() if finite(step.get("loss")) and finite(step.get("tokens"))]
        width = float(steps[-1]["tokens"]) / points if len(steps) > points else 0.0
        for stage, held in groupby(steps, key=lambda step: str(step.get("stage", ""))):
            curve = thinned([(float(step["tokens"]), float(step["loss"])) for step in held], width)
            yield {
                "type": "scatter",
                "mode": "lines" if len(curve) > 1 else "markers",
                "x": [x for x, _ in curve],
                "y": [y for _, y in curve],
                "line": {"color": line.mark.colour, "width": 1.6, "dash": dash},
                "marker": {"color": line.mark.colour, "size": 5},
                "opacity": 1 if len(line.ok()) == 1 else 0.75,
                "hoverinfo": "text",
                "hovertext": [
                    f"<b>{text(line.label)}</b><br>{text(name)}, stage {text(stage)}<br>{x:,.0f} tokens: loss {y:.3f}"
                    for x, y in curve
                ],
            }


def thinned(curve: Sequence[Point], width: float) -> list[Point]:
    """Return the mean over each stretch of so much of the axis; with width 0 every point."""
    if not width:
        return list(curve)
    # A stretch holds its end, give or take rounding, so that the curve's last point is in the last full stretch.
    stretches = groupby(curve, key=lambda point: math.ceil(point[0] / width - 1e-6))
    return [_mean_point(list(held)) for _, held in stretches]


def _mean_point(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def midway_charts(view: View) -> list[Chart]:
    """Draw adherence midway by tokens and by seconds of training."""
    held = [(line, rows) for line in view.lines if (rows := _midway(line.ok()))]
    if not held:
        return []
    caption = _budgets_caption([line for line, _ in held])
    return [
        _midway_chart("by tokens", "tokens trained on", "tokens", held, caption),
        _midway_chart("by seconds", "seconds of training", "seconds", held, caption),
    ]


def _midway(runs: Sequence[Run]) -> list[Checkpoint]:
    """Return the mean of the seeds' checkpoints; of seeds that were not asked as often, the first's."""
    found = [run.result.measures.checkpoints for run in runs if run.result.measures.checkpoints]
    if not found or len({len(rows) for rows in found}) > 1:
        return list(found[0]) if found else []
    return [
        Checkpoint(
            tokens=round(sum(row.tokens for row in rows) / len(rows)),
            seconds=sum(row.seconds for row in rows) / len(rows),
            adherence=sum(row.adherence for row in rows) / len(rows),
        )
        for rows in zip(*found, strict=True)
    ]


def _midway_chart(
    how: str, title: str, unit: str, held: Sequence[tuple[Line, list[Checkpoint]]], caption: str
) -> Chart:
    traces = []
    budgets = _budgets([line for line, _ in held])
    labelled: set[str] = set()
    for line, rows in held:
        dash = _DASHES[_place(line, budgets)] if caption else line.mark.dash
        trace = series_trace(
            line.series,
            line.mark,
            line.series,
            type="scatter",
            mode="lines+markers",
            x=[getattr(row, unit) for row in rows],
            y=[row.adherence for row in rows],
            line={"color": line.mark.colour, "width": 2, "dash": dash},
            hovertext=[
                f"<b>{text(line.label)}</b><br>{row.tokens:,} tokens, {row.seconds:,.1f} s<br>"
                f"adherence {row.adherence:.2f}"
                for row in rows
            ],
        )
        trace["marker"]["size"] = 7
        trace["meta"]["direct"] = line.series not in labelled
        labelled.add(line.series)
        traces.append(trace)
    last = max(float(getattr(rows[-1], unit)) for _, rows in held)
    layout = {
        "xaxis": axis(title, tickformat="~s" if unit == "tokens" else ",~r", range=[0, 1.26 * last], nticks=7),
        "yaxis": share_axis("adherence ↑"),
        "shapes": [_level(_TARGET)],
    }
    return Chart(
        f"Adherence midway, {how}",
        f"Adherence on a few prompts asked midway, {how}, a line a row; the dashed line is at {_TARGET}.",
        make_figure(traces, layout),
        360,
        caption,
        toggles=True,
    )


def _level(height: float) -> dict[str, Any]:
    line = {"color": "var(--guide)", "width": 1, "dash": "dash"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": height, "y1": height, "line": line}


def budget_chart(view: View) -> Chart | None:
    """Draw adherence by memory budget, a line an algorithm; nothing where there are not several budgets."""
    budgets = sorted({line.row["memory_budget"] for line in view.lines if line.row["memory_budget"]})
    if len(budgets) < 2:
        return None
    traces = [trace for series, mark in view.series().items() if (trace := _budget_trace(view, series, mark))]
    if not traces:
        return None
    span = math.log10(budgets[-1] / budgets[0])
    layout = {
        "xaxis": axis(
            "memory budget",
            type="log",
            tickvals=budgets,
            ticktext=[budget_name(budget) for budget in budgets],
            range=[math.log10(budgets[0]) - 0.1 * span, math.log10(budgets[-1]) + 0.28 * span],
        ),
        "yaxis": share_axis("adherence ↑ (share of prompts)"),
    }
    return Chart(
        "Adherence by memory budget",
        "Adherence under each memory budget, a line an algorithm; the figures stand in the table below.",
        make_figure(traces, layout),
        380,
        "A line ends where its algorithm no longer fits; the table says how it ended.",
        toggles=True,
    )


def _budget_trace(view: View, series: str, mark: Mark) -> Trace | None:
    held = [line for line in view.lines if line.series == series and line.row["memory_budget"]]
    held = sorted(
        (line for line in held if line.row["adherence"] and finite(line.row["adherence"]["mean"])),
        key=lambda line: int(line.row["memory_budget"]),
    )
    if not held:
        return None
    trace = series_trace(
        series,
        mark,
        series,
        type="scatter",
        mode="lines+markers",
        x=[line.row["memory_budget"] for line in held],
        y=[line.row["adherence"]["mean"] for line in held],
        line={"color": mark.colour, "width": 2, "dash": mark.dash},
        hovertext=[
            f"<b>{text(series)}</b><br>{budget_name(line.row['memory_budget'])}: "
            f"adherence {line.row['adherence']['mean']:.2f}"
            for line in held
        ],
    )
    trace["meta"]["direct"] = True
    return trace
