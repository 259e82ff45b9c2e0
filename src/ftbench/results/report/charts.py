"""The charts of a group's rows: intervals, adherence against what it takes, memory by what it is made of."""

from collections.abc import Sequence
from typing import Any

from ftbench.results.report.figure import (
    Chart,
    Trace,
    axis,
    bytes_axis,
    error_bars,
    finite,
    hover,
    make_figure,
    series_trace,
    share_axis,
    text,
)
from ftbench.results.report.lines import Line, View, short_bytes

_ROW, _AROUND = 26, 64
_MEMORY_PARTS = ("parameters", "gradients", "optimiser", "activations", "logits")


def interval_charts(view: View) -> list[Chart]:
    """Draw each figure that has intervals as one dot and bar a row."""
    shares = [("adherence", "Adherence"), ("adherence_under_attack", "Adherence under attack")]
    charts = [_intervals(view, key, title, share_axis("share of prompts ↑")) for key, title in shares]
    rise = axis("nats/token ↓", tickformat="+.2f", nticks=6)
    charts.append(_intervals(view, "forgetting", "Forgetting", rise))
    return [chart for chart in charts if chart]


def _intervals(view: View, key: str, title: str, across: dict[str, Any]) -> Chart | None:
    held = [line for line in view.lines if line.row[key] and finite(line.row[key]["mean"])]
    if not held:
        return None
    traces = [
        series_trace(
            line.series,
            line.mark,
            line.label,
            type="scatter",
            mode="markers",
            x=[line.row[key]["mean"]],
            y=[text(line.label)],
            error_x=error_bars([line.row[key]], line.mark.colour),
            hovertext=[hover(line, view)],
        )
        for line in held
    ]
    layout: dict[str, Any] = {"xaxis": across, "yaxis": _rows_axis(held)}
    if key == "forgetting":
        layout["shapes"] = [{"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "line": _GUIDE}]
    return Chart(
        title,
        f"{title} of each row with its 95 % interval; the figures stand in the table.",
        make_figure(traces, layout),
        _AROUND + _ROW * len(held),
        width="narrow",
    )


_GUIDE = {"color": "var(--guide)", "width": 1, "dash": "dash"}


def _rows_axis(lines: Sequence[Line]) -> dict[str, Any]:
    """Return an axis with a row's name at each place, the first on top."""
    names = [text(line.label) for line in lines]
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": names,
        "range": [len(names) - 0.5, -0.5],
        "automargin": True,
        "ticklabelstandoff": 4,
        "dtick": 1,
    }


def trade_off_charts(view: View) -> list[Chart]:
    """Draw adherence against peak memory and against speed, with the rows that no other is better than in both."""
    kinds = {line.row["memory_kind"] for line in view.lines if line.row["peak_memory_bytes"]}
    memory = [line for line in view.lines if _measured(line, "peak_memory_bytes")]
    speed = [line for line in view.lines if _measured(line, "tokens_per_second")]
    charts = []
    if memory:
        across = bytes_axis(f"peak memory ↓ ({', '.join(sorted(kinds))})", [_mean(line, _MEMORY) for line in memory])
        charts.append(_trade_off(view, memory, _MEMORY, "Adherence against peak memory", across))
    if speed:
        fastest = max(_mean(line, _SPEED) for line in speed)
        across = axis("speed of training ↑ (tokens/s)", range=[0, fastest * 1.12], tickformat=",~r", nticks=7)
        charts.append(_trade_off(view, speed, _SPEED, "Adherence against speed", across))
    return charts


_MEMORY, _SPEED = "peak_memory_bytes", "tokens_per_second"


def _measured(line: Line, key: str) -> bool:
    return all(line.row[name] and finite(line.row[name]["mean"]) for name in (key, "adherence"))


def _mean(line: Line, key: str) -> float:
    return float(line.row[key]["mean"])


def _trade_off(view: View, lines: Sequence[Line], key: str, title: str, across: dict[str, Any]) -> Chart:
    front = pareto_front([line for line in lines if line.trained], key)
    step: Trace = {
        "type": "scatter",
        "mode": "lines",
        "x": [_mean(line, key) for line in front],
        "y": [_mean(line, "adherence") for line in front],
        "line": {"shape": "hv" if key == _MEMORY else "vh", "color": "var(--front)", "width": 2, "dash": "dot"},
        "hoverinfo": "skip",
    }
    points = [_point(view, line, key) for line in lines]
    names = ", ".join(line.label for line in front)
    caption = f"Dotted: the Pareto front, those that no other row is better than in both: {names}." if front else ""
    if any(not line.trained for line in lines):
        caption += " Hollow: not trained; its memory is that of evaluating, and it is not on the front."
    return Chart(
        title,
        f"{title}, a mark a row with the 95 % interval of adherence. {caption}",
        make_figure([step, *points], {"xaxis": across, "yaxis": share_axis("adherence ↑ (share of prompts)")}),
        420,
        caption,
        toggles=True,
    )


def _point(view: View, line: Line, key: str) -> Trace:
    trace = series_trace(
        line.series,
        line.mark,
        line.label,
        type="scatter",
        mode="markers",
        x=[_mean(line, key)],
        y=[_mean(line, "adherence")],
        error_y=error_bars([line.row["adherence"]], line.mark.colour),
        hovertext=[hover(line, view)],
    )
    trace["meta"]["direct"] = True
    if not line.trained:
        trace["marker"] = {**trace["marker"], "symbol": f"{line.mark.symbol}-open", "line": {"width": 2}}
    return trace


def pareto_front(lines: Sequence[Line], key: str) -> list[Line]:
    """Return the rows that no other beats in adherence and in `key`, from the worst adherence to the best.

    Of rows that are equal in both, all are on the front.
    """
    sign = -1 if key == _MEMORY else 1

    def beats(one: Line, other: Line) -> bool:
        gains = (_mean(one, "adherence") - _mean(other, "adherence"), sign * (_mean(one, key) - _mean(other, key)))
        return min(gains) >= 0 and max(gains) > 0

    front = [line for line in lines if not any(beats(other, line) for other in lines)]
    return sorted(front, key=lambda line: (_mean(line, "adherence"), sign * -_mean(line, key)))


def memory_chart(view: View) -> Chart | None:
    """Draw what the peak of each row is made of; of rows that did not fit, what was predicted."""
    held = {line.label: (line, _parts(line)) for line in view.lines}
    held = {label: (line, parts) for label, (line, parts) in held.items() if parts}
    if not held:
        return None
    traces = [
        _bars(part, number, list(held.values()), predicted=predicted)
        for predicted in (False, True)
        for number, part in enumerate((*_MEMORY_PARTS, "not told apart"), 1)
    ]
    totals = [sum(parts.values()) for _, parts in held.values()]
    traces.append(
        {
            "type": "scatter",
            "mode": "text",
            "x": totals,
            "y": [text(label) for label in held],
            "text": [f" {short_bytes(total)}" for total in totals],
            "textposition": "middle right",
            "hoverinfo": "skip",
            "cliponaxis": False,
        }
    )
    lines = [line for line, _ in held.values()]
    across = bytes_axis("bytes at the peak", totals, from_zero=True, room=1.28)
    rows = {**_rows_axis(lines), "showgrid": False}
    layout = {"xaxis": across, "yaxis": rows, "barmode": "stack", "bargap": 0.3}
    untrained = [line.label for line in lines if not line.trained and line.ok()]
    caption = f"Not trained, and measured while evaluating: {', '.join(untrained)}." if untrained else ""
    if any(not line.ok() for line in lines):
        caption += " Hatched: predicted, for it did not fit."
    about = "Stacked bars of parameters, gradients, optimiser state, activations and logits at each row's peak."
    figure = make_figure([trace for trace in traces if trace["x"]], layout)
    return Chart("Memory at the peak", about, figure, _AROUND + _ROW * len(held), caption)


def _parts(line: Line) -> dict[str, float]:
    """Return the bytes of a row's peak by what they are: the mean over its seeds, or what was predicted of them."""
    ok = line.ok()
    found = [run.result.measures.peak_parts for run in ok if run.result.measures.peak_parts]
    if found:
        return {part: sum(parts.get(part, 0) for parts in found) / len(found) for part in _MEMORY_PARTS}
    if ok:
        return {"not told apart": _mean(line, _MEMORY)} if line.row[_MEMORY] else {}
    plans = [run.result.memory_plan for run in line.runs]
    return next((dict(plan.predicted_parts) for plan in plans if plan and plan.predicted_parts), {})


def _bars(part: str, number: int, held: Sequence[tuple[Line, dict[str, float]]], *, predicted: bool) -> Trace:
    wanted = [(line, parts) for line, parts in held if parts.get(part) and predicted != bool(line.ok())]
    return {
        "type": "bar",
        "orientation": "h",
        "name": part,
        "meta": {"part": number},
        "x": [parts[part] for _, parts in wanted],
        "y": [text(line.label) for line, _ in wanted],
        "marker": {
            "color": f"var(--part-{number})",
            "line": {"color": f"var(--part-{number})" if predicted else "var(--ground)", "width": 1},
            **({"pattern": {"shape": "/", "size": 6, "solidity": 0.4}} if predicted else {}),
        },
        "hoverinfo": "text",
        "hovertext": [
            f"<b>{text(line.label)}</b><br>{part}: {short_bytes(parts[part])}"
            f" of {short_bytes(sum(parts.values()))}{' (predicted)' if predicted else ''}"
            for line, parts in wanted
        ],
    }


def used_parts(chart: Chart) -> list[tuple[int, str]]:
    """Return number and name of the parts that a memory chart has bars of, for its legend."""
    bars = [trace for trace in chart.figure["data"] if trace["type"] == "bar"]
    return sorted({(trace["meta"]["part"], trace["name"]) for trace in bars})
