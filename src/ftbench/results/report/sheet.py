"""The table of a group as the page shows it, and what can be said of it in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftbench.results.columns import Column, shown_columns
from ftbench.results.report.figure import finite
from ftbench.results.report.lines import Line, Mark, View, budget_name
from ftbench.results.table import cell, heading


@dataclass(frozen=True)
class Cell:
    """A cell: what is read, what is sorted by (None where there is nothing), and the share that a bar shows."""

    shown: str
    sort: float | str | None
    share: float | None = None
    status: str = ""
    mark: Mark | None = None


@dataclass(frozen=True)
class Head:
    """A column's heading: its name and the rest, which way is better, what it is, whether only a wide table has it."""

    main: str
    rest: str
    better: str
    about: str
    wide: bool
    number: bool


@dataclass(frozen=True)
class Sheet:
    """A table: its headings and its rows."""

    heads: list[Head]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Tile:
    """A finding in short: what it is, whose, and its figure."""

    title: str
    label: str
    figure: str
    mark: Mark


_SHARES = ("adherence", "adherence_under_attack", "distinct")
_WORDS = ("algorithm", "options", "start", "status")


def build_sheet(view: View) -> Sheet:
    """Make the table of a group, the columns of a wide table among them."""
    rows = view.group.rows
    plain = {column.key for column in shown_columns(rows, wide=False)}
    columns = shown_columns(rows, wide=True)
    heads = [
        Head(
            *_parted(heading(column, rows)),
            column.better,
            column.about,
            column.key not in plain,
            column.key not in _WORDS,
        )
        for column in columns
    ]
    return Sheet(heads, [[_cell(column, line) for column in columns] for line in view.lines])


def _parted(text: str) -> tuple[str, str]:
    """Part the name of a column from what stands behind its arrow; a short name stays on one line."""
    name, arrow, rest = text.partition("↑" if "↑" in text else "↓")
    name = name.strip()
    name = name.replace(" ", "\u00a0") if len(name) < 16 else name
    return (f"{name}\u00a0{arrow}" if arrow else name), rest.strip()


def _cell(column: Column, line: Line) -> Cell:
    value = column.value(line.row)
    if column.key == "algorithm":
        return Cell(str(value), str(value), mark=line.mark)
    if column.key == "status":
        return Cell(str(value), str(value), status="ok" if value == "ok" else "partly" if line.ok() else "bad")
    shown = cell(column, line.row)
    return Cell(shown, _sorted_by(value), share=value["mean"] if value and column.key in _SHARES else None)


def _sorted_by(value: Any) -> float | str | None:
    if isinstance(value, dict):
        value = value.get("mean", value.get("tokens", value.get("micro_batch_tokens")))
    if isinstance(value, list):
        return len(value)
    if isinstance(value, str):
        return value
    return value if finite(value) else None


def tiles(view: View) -> list[Tile]:
    """Name the best trained row, and the thriftiest, fastest and least forgetful of those that it is not clear of.

    A row counts among those whose interval of adherence reaches into the best one's. Nothing where fewer than two rows
    can be held beside each other.
    """
    trained = [
        line for line in view.lines if line.trained and line.row["adherence"] and finite(line.row["adherence"]["low"])
    ]
    if len(trained) < 2:
        return []
    best = max(trained, key=lambda line: line.row["adherence"]["mean"])
    peers = [line for line in trained if line.row["adherence"]["high"] >= best.row["adherence"]["low"]]
    columns = {column.key: column for column in shown_columns(view.group.rows, wide=True)}
    found = [Tile("highest adherence", best.label, cell(columns["adherence"], best.row), best.mark)]
    asked = [
        ("peak_memory_bytes", -1, "least memory", ""),
        ("tokens_per_second", 1, "fastest", " tokens/s"),
        ("forgetting", -1, "least forgetting", " nats/token"),
    ]
    for key, sign, title, unit in asked:
        measured = [line for line in peers if line.row[key] and finite(line.row[key]["mean"])]
        if len(measured) > 1:
            line = max(measured, key=lambda line: sign * line.row[key]["mean"])
            figure = cell(columns[key], line.row).partition(" [")[0]
            found.append(Tile(f"{title} of the {len(measured)} top rows", line.label, figure + unit, line.mark))
    return found


def budget_matrix(view: View) -> tuple[list[str], list[tuple[str, Mark, list[Cell]]]]:
    """Return the memory budgets and, for each series, what became of it under each."""
    budgets = sorted({line.row["memory_budget"] or 0 for line in view.lines})
    rows = []
    for series, mark in view.series().items():
        by_budget = {line.row["memory_budget"] or 0: line for line in view.lines if line.series == series}
        rows.append((series, mark, [_outcome(by_budget.get(budget)) for budget in budgets]))
    return [budget_name(budget) for budget in budgets], rows


def _outcome(line: Line | None) -> Cell:
    if line is None:
        return Cell("not run", None)
    value = line.row["adherence"]
    if value and line.ok():
        return Cell(f"{value['mean']:.2f}", value["mean"], share=value["mean"])
    return Cell(str(line.row["status"]), None, status="bad")


def definitions(views: Sequence[View]) -> list[Column]:
    """Return every column that stands in one of the tables, once."""
    found: dict[str, Column] = {}
    for view in views:
        for column in shown_columns(view.group.rows, wide=True):
            found.setdefault(column.key, column)
    return list(found.values())
