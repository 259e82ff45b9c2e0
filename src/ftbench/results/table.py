"""The table: rows that can be compared stand together, others apart, with what sets them apart."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ftbench.errors import UsageError, nearest
from ftbench.evaluation.statistics import Measured
from ftbench.memory.budget import format_bytes
from ftbench.results.comparing import comparable, terms
from ftbench.results.store import Run

FORMATS = ("github", "html", "latex", "csv", "json")

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: its key in JSON and CSV, its heading, and how a person reads its value."""

    key: str
    heading: str
    show: Callable[[Any], str]

    def value(self, row: Row) -> Any:
        """Return what stands in it, None where nothing does."""
        return row[self.key]


@dataclass(frozen=True)
class OwnColumn(Column):
    """A column of what an algorithm measured of itself."""

    @classmethod
    def of(cls, name: str) -> "OwnColumn":
        """Return the column of a figure."""
        return cls(name, name.replace("_", " "), "{:.4g}".format)

    def value(self, row: Row) -> Any:
        """Return what stands in it, None where nothing does."""
        return row["own"].get(self.key)


def _share(value: Any) -> str:
    interval = f" [{value['low']:.2f}, {value['high']:.2f}]" if value["low"] is not None else ""
    return f"{value['mean']:.2f}{interval}"


def _nats(value: Any) -> str:
    return f"{value['mean']:+.2f}" + (
        f" [{value['low']:+.2f}, {value['high']:+.2f}]" if value["low"] is not None else ""
    )


def _bytes(value: Any) -> str:
    return format_bytes(value["mean"])


def _count(value: Any) -> str:
    return f"{value:,}"


def _trained_on(value: Any) -> str:
    return f"{value['prompts']:,} / {value['sequences']:,} / {value['tokens']:,}"


def _cut(value: Any) -> str:
    return f"{value['micro_batch_tokens']:,}" + (" + checkpointing" if value["checkpointing"] else "")


COLUMNS = (
    Column("algorithm", "algorithm", str),
    Column("seed", "seed", str),
    Column("options", "options", str),
    Column("start", "started from", str),
    Column("memory_budget", "memory budget", format_bytes),
    Column("status", "status", str),
    Column("adherence", "adherence ↑ [95 %]", _share),
    Column("distinct", "distinct ↑", _share),
    Column("forgetting", "forgetting ↓ nats/token [95 %]", _nats),
    Column("peak_memory_bytes", "peak memory ↓", _bytes),
    Column("peak_reserved_bytes", "reserved ↓", _bytes),
    Column("cut", "micro-batch", _cut),
    Column("tokens_per_second", "tokens/s ↑", lambda value: f"{value['mean']:.0f}"),
    Column("training_seconds", "training s ↓", lambda value: f"{value['mean']:.0f}"),
    Column("trained_on", "prompts / sequences / tokens", _trained_on),
    Column("trainable_parameters", "trainable", _count),
    Column("size_on_disk", "size ↓", lambda value: format_bytes(value) if value else "-"),
    Column("cache_bytes_per_token", "cache ↓ a token", format_bytes),
)


_MEASURED = (
    "adherence",
    "distinct",
    "forgetting",
    "peak_memory_bytes",
    "peak_reserved_bytes",
    "tokens_per_second",
    "training_seconds",
)


_PARTS = {"trained_on": ("prompts", "sequences", "tokens"), "cut": ("micro_batch_tokens", "checkpointing")}


@dataclass(frozen=True)
class Group:
    """Rows that can be compared, and what they have in common."""

    terms: dict[str, str]
    rows: list[Row]


def build_groups(runs: Sequence[Run], sort: str | None = None) -> list[Group]:
    """Make a group of rows of each set of comparable runs.

    Args:
        runs: oldest first.
        sort: key of a column; by default adherence, best first.

    Raises:
        UsageError: there is no such column.
    """
    keys = [column.key for column in COLUMNS]
    if sort is not None and sort not in keys:
        raise UsageError(f"no such column '{sort}'; {nearest(sort, keys)}")
    return [
        Group(terms(members[0].result) | _one_budget(members), _sorted([_row(run) for run in members], sort))
        for members in comparable(runs)
    ]


def _one_budget(runs: Sequence[Run]) -> dict[str, str]:
    """Name the memory budget where it is the same for all; where not, it has a column."""
    budgets = {run.result.recipe.memory_budget for run in runs}
    if len(budgets) > 1:
        return {}
    budget = budgets.pop()
    return {"memory budget": format_bytes(budget) if budget else "none"}


def _row(run: Run) -> Row:
    result, measures = run.result, run.result.measures

    def single(value: float | None) -> Row | None:
        return None if value is None else Measured(mean=value).model_dump()

    return {
        "algorithm": result.recipe.algorithm,
        "seed": result.recipe.seed,
        "options": ", ".join(f"{key}={value}" for key, value in result.recipe.options.items()),
        "start": f"{result.start.run} ({result.start.tokens:,} tokens)" if result.start else None,
        "memory_budget": result.recipe.memory_budget,
        "status": result.status,
        "reason": result.reason,
        "adherence": measures.adherence.model_dump() if measures.adherence else None,
        "distinct": measures.distinct.model_dump() if measures.distinct else None,
        "forgetting": measures.forgetting.model_dump() if measures.forgetting else None,
        "peak_memory_bytes": single(measures.peak_memory_bytes),
        "peak_reserved_bytes": single(measures.peak_reserved_bytes),
        "memory_kind": measures.memory_kind,
        "cut": {"micro_batch_tokens": measures.micro_batch_tokens, "checkpointing": measures.checkpointing}
        if measures.micro_batch_tokens
        else None,
        "tokens_per_second": single(measures.tokens_per_second),
        "training_seconds": single(measures.training_seconds),
        "trained_on": {
            "prompts": measures.training_prompts,
            "sequences": measures.training_sequences,
            "tokens": measures.training_tokens,
        }
        if measures.training_sequences
        else None,
        "trainable_parameters": measures.trainable_parameters,
        "size_on_disk": measures.size_on_disk,
        "cache_bytes_per_token": measures.cache_bytes_per_token,
        "own": measures.own,
        "judge_auc": result.judge.auc if result.judge else None,
        "judge_agreement": measures.agreement.mean if measures.agreement else None,
        "judge_warning": result.judge.warning if result.judge else None,
        "run": run.folder.name,
    }


def _sorted(rows: list[Row], sort: str | None) -> list[Row]:
    key = sort or "adherence"

    def rank(row: Row) -> tuple[bool, Any]:
        value = row[key]
        value = value.get("mean", value.get("tokens")) if isinstance(value, dict) else value
        missing = value is None or (isinstance(value, float) and not math.isfinite(value))
        if isinstance(value, int | float) and key in ("adherence", "distinct", "tokens_per_second"):
            value = -value
        return missing, 0 if missing else value

    return sorted(rows, key=rank)


def render(groups: Sequence[Group], style: str) -> str:
    """Write the groups in one of FORMATS. JSON is one list of rows, CSV one sheet; both carry the terms in each row."""
    flat = [{**row, "terms": group.terms} for group in groups for row in group.rows]
    if style == "json":
        return json.dumps(_finite(flat), indent=2, ensure_ascii=False)
    if style == "csv":
        return _csv(flat)
    from tabulate import tabulate

    blocks = []
    shared = _shared_terms(groups)
    for group in groups:
        columns = _shown(group.rows)
        headings = [_heading(column, group.rows) for column in columns]
        cells = [[_cell(column, row) for column in columns] for row in group.rows]
        text = tabulate(cells, headings, tablefmt=style, disable_numparse=True, colalign=["left"] * len(columns))
        own = {key: value for key, value in group.terms.items() if key not in shared}
        notes = [f"{row['algorithm']}: {row['status']}: {row['reason']}" for row in group.rows if row["reason"]]
        notes += dict.fromkeys(f"warning: {row['judge_warning']}" for row in group.rows if row["judge_warning"])
        blocks.append("\n".join([*_caption(own, style), text, *([""] if notes else []), *_comment(notes, style)]))
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


def _shared_terms(groups: Sequence[Group]) -> dict[str, str]:
    first = groups[0].terms
    return {key: value for key, value in first.items() if all(group.terms.get(key) == value for group in groups)}


def _shown(rows: list[Row]) -> list[Column]:
    """Leave out columns that say nothing here: empty ones, and what does not tell rows apart."""
    names = [row["algorithm"] for row in rows]
    several_seeds = len({row["seed"] for row in rows}) > 1
    several_options = len({(row["algorithm"], row["options"]) for row in rows}) > len(set(names))
    hidden = {"seed"} if not several_seeds else set()
    hidden |= {"options"} if not several_options else set()
    hidden |= {"memory_budget"} if len({row["memory_budget"] for row in rows}) == 1 else set()
    cuts = {tuple(row["cut"].values()) for row in rows if row["cut"]}
    hidden |= {"cut"} if len(cuts) <= 1 and not any(row["memory_budget"] for row in rows) else set()
    caches = {row["cache_bytes_per_token"] for row in rows} - {None}
    hidden |= {"cache_bytes_per_token"} if len(caches) == 1 else set()
    shown = [
        column for column in COLUMNS if column.key not in hidden and any(row[column.key] is not None for row in rows)
    ]
    return shown + [OwnColumn.of(name) for name in dict.fromkeys(name for row in rows for name in row["own"])]


def _heading(column: Column, rows: list[Row]) -> str:
    if column.key != "peak_memory_bytes":
        return column.heading
    kinds = sorted({row["memory_kind"] for row in rows if row["peak_memory_bytes"]})
    return f"{column.heading} ({', '.join(kinds)})"


def _cell(column: Column, row: Row) -> str:
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
            if isinstance(value, dict):
                cells |= {f"{key}.{part}": part_value for part, part_value in value.items()}
            elif key in _MEASURED:
                cells |= {f"{key}.{part}": None for part in Measured.model_fields}
            elif key in _PARTS:
                cells |= {f"{key}.{part}": None for part in _PARTS[key]}
            else:
                cells[key] = value
        flat.append(cells)
    writer = csv.DictWriter(sheet, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return sheet.getvalue().rstrip("\n")
