"""The table: rows that can be compared stand together, others apart, with what sets them apart."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from ftbench.evaluation.comparison import LEVEL, Difference
from ftbench.evaluation.statistics import Measured
from ftbench.results.columns import REFERENCE, Column, Row, shown_columns
from ftbench.results.result import RELIABLE_AGREEMENT
from ftbench.results.rows import Group

FORMATS = ("github", "html", "latex", "csv", "json")

_PARTS = {
    **dict.fromkeys(
        (
            "adherence",
            "adherence_under_attack",
            "distinct",
            "forgetting",
            "reply_tokens",
            "peak_memory_bytes",
            "peak_reserved_bytes",
            "tokens_per_second",
            "training_seconds",
            "tokens_to_adherence",
            "seconds_to_adherence",
            "tuning_seconds",
            "run_seconds",
            "cost",
        ),
        tuple(Measured.model_fields),
    ),
    "difference": (*Difference.model_fields, "verdict"),
    "trained_on": ("prompts", "sequences", "tokens"),
    "cut": ("micro_batch_tokens", "checkpointing"),
}
"""What becomes several columns of a sheet, also where it is empty."""


def render(groups: Sequence[Group], style: str, *, wide: bool = False) -> str:
    """Write the groups in one of FORMATS. JSON is one list of rows, CSV one sheet; both carry the terms in each row."""
    flat = [{**row, "terms": group.terms} for group in groups for row in group.rows]
    if style == "json":
        return json.dumps(_finite(flat), indent=2, ensure_ascii=False)
    if style == "csv":
        return _csv(_finite(flat))
    from tabulate import tabulate

    blocks = []
    shared = shared_terms(groups)
    for group in groups:
        columns = shown_columns(group.rows, wide=wide)
        headings = [heading(column, group.rows) for column in columns]
        cells = [[cell(column, row) for column in columns] for row in group.rows]
        text = tabulate(cells, headings, tablefmt=style, disable_numparse=True, colalign=["left"] * len(columns))
        own = {key: value for key, value in group.terms.items() if key not in shared}
        below = notes(group.rows)
        blocks.append("\n".join([*_caption(own, style), text, *([""] if below else []), *_comment(below, style)]))
    if len(groups) > 1:
        blocks.insert(
            0, "\n".join(_comment([f"{len(groups)} tables: their rows differ in what stands above each."], style))
        )
    if shared:
        blocks.append("\n".join(_comment([f"{key}: {value}" for key, value in shared.items()], style)))
    return "\n\n".join(blocks)


def _finite(value: Any) -> Any:
    """Put null for figures that are no number: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shared_terms(groups: Sequence[Group]) -> dict[str, str]:
    """Return the terms that all groups have in common."""
    first = groups[0].terms
    return {key: value for key, value in first.items() if all(group.terms.get(key) == value for group in groups)}


def heading(column: Column, rows: list[Row]) -> str:
    """Return what stands above a column of these rows."""
    if column.key == "difference":
        return f"against {_reference(rows)} ↑ [95 %]"
    if column.key != "peak_memory_bytes":
        return column.heading
    kinds = sorted({row["memory_kind"] for row in rows if row["peak_memory_bytes"]})
    return f"{column.heading} ({', '.join(kinds)})"


def _reference(rows: list[Row]) -> str:
    """Name the row that others are held against."""
    held = [row for row in rows if row["difference"]]
    return str(next(row["algorithm"] for row in held if row["difference"]["verdict"] == REFERENCE))


def notes(rows: list[Row]) -> list[str]:
    """Say below a table what its cells have no room for."""
    lines = [f"{row['algorithm']}: {row['status']}: {row['reason']}" for row in rows if row["reason"]]
    lines += dict.fromkeys(f"warning: {row['judge_warning']}" for row in rows if row["judge_warning"])
    lines += [
        f"warning: of {row['algorithm']}'s replies the second judge agrees on {row['judge_agreement']:.2f} "
        f"only, below {RELIABLE_AGREEMENT:.2f}: read some (ftbench show)"
        for row in rows
        if row["judge_agreement"] is not None and row["judge_agreement"] < RELIABLE_AGREEMENT
    ]
    plain = [row["algorithm"] for row in rows if row["learning_rate"] is not None and row["tuning_seconds"] is None]
    if plain and len(plain) < sum(row["learning_rate"] is not None for row in rows):
        lines.append(
            f"not tuned: {', '.join(dict.fromkeys(plain))}: their learning rates were not sought, as others' were"
        )
    tests = sum(row["difference"] is not None and row["difference"]["p_corrected"] is not None for row in rows)
    if tests:
        lines.append(
            f"against {_reference(rows)}: difference in adherence, paired by prompt and by seed; what is called better "
            f"or worse has p < {LEVEL:g} after Holm's correction for {tests} {'test' if tests == 1 else 'tests'}"
        )
    return lines


def cell(column: Column, row: Row) -> str:
    """Return a row's value as a person reads it."""
    value = column.value(row)
    return "-" if value is None else column.show(value)


def _caption(own: dict[str, str], style: str) -> list[str]:
    return [*_comment([f"{key}: {value}" for key, value in own.items()], style), ""] if own else []


def _comment(lines: list[str], style: str) -> list[str]:
    """Write lines that are no row, in the way of the format."""
    if style == "latex":
        return [f"% {line}" for line in lines]
    if style == "html":
        from html import escape

        return [f"<p>{escape(line)}</p>" for line in lines]
    return [f"- {line}" for line in lines]


def _csv(rows: list[Row]) -> str:
    sheet = io.StringIO()
    flat = []
    for row in rows:
        cells: Row = {}
        for key, value in row.items():
            if key == "own":
                cells |= {f"own.{name}": figure["mean"] for name, figure in value.items()}
            elif isinstance(value, list):
                cells[key] = " ".join(map(str, value))
            elif isinstance(value, dict):
                cells |= {f"{key}.{part}": part_value for part, part_value in value.items()}
            elif key in _PARTS:
                cells |= {f"{key}.{part}": None for part in _PARTS[key]}
            else:
                cells[key] = value
        flat.append(cells)
    writer = csv.DictWriter(sheet, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return sheet.getvalue().rstrip("\n")
