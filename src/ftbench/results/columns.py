"""The table's columns: what stands in them, and how a person reads it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ftbench.memory.budget import format_bytes

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: its key in JSON and CSV, its heading, how a person reads its value, and whether more is better.

    One that is `wide` is printed only where a wide table is asked for.
    """

    key: str
    heading: str
    show: Callable[[Any], str]
    more_is_better: bool = False
    wide: bool = False

    def value(self, row: Row) -> Any:
        """Return what stands in it, None where nothing does."""
        return row[self.key]


@dataclass(frozen=True)
class OwnColumn(Column):
    """A column of what an algorithm measured of itself."""

    @classmethod
    def of(cls, name: str) -> "OwnColumn":
        """Return the column of a figure."""
        return cls(name, name.replace("_", " "), lambda value: f"{value['mean']:.4g}")

    def value(self, row: Row) -> Any:
        """Return what stands in it, None where nothing does."""
        return row["own"].get(self.key)


def _interval(value: Any, form: str) -> str:
    if value["low"] is None:
        return format(value["mean"], form)
    return f"{value['mean']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def _share(value: Any) -> str:
    return _interval(value, ".2f")


def _change(value: Any) -> str:
    return _interval(value, "+.2f")


def _mean_share(value: Any) -> str:
    return f"{value['mean']:.2f}"


def _whole(value: Any) -> str:
    return f"{value['mean']:,.0f}"


def _bytes(value: Any) -> str:
    return format_bytes(value["mean"])


def _count(value: Any) -> str:
    return f"{value:,}"


def _trained_on(value: Any) -> str:
    return f"{value['prompts']:,} / {value['sequences']:,} / {value['tokens']:,}"


def _cut(value: Any) -> str:
    return f"{value['micro_batch_tokens']:,}" + (" + checkpointing" if value["checkpointing"] else "")


def _difference(value: Any) -> str:
    if value["verdict"] == REFERENCE:
        return "-"
    return f"{_change(value)} {value['verdict']}" if value["prompts"] else str(value["verdict"])


REFERENCE = "reference"
"""What is said of the row itself that others are held against."""

COLUMNS = (
    Column("algorithm", "algorithm", str),
    Column("seeds", "seeds", lambda value: str(len(value))),
    Column("options", "options", str),
    Column("learning_rate", "learning rate", lambda value: f"{value:g}"),
    Column("start", "started from", str),
    Column("memory_budget", "memory budget", format_bytes),
    Column("status", "status", str),
    Column("adherence", "adherence ↑ [95 %]", _share, more_is_better=True),
    Column("difference", "against another ↑ [95 %]", _difference, more_is_better=True),
    Column("adherence_under_attack", "under attack ↑ [95 %]", _share, more_is_better=True),
    Column("distinct", "distinct ↑", _mean_share, more_is_better=True),
    Column("forgetting", "forgetting ↓ nats/token [95 %]", _change),
    Column("reply_tokens", "tokens a reply", _whole, wide=True),
    Column("peak_memory_bytes", "peak memory ↓", _bytes),
    Column("peak_reserved_bytes", "reserved ↓", _bytes, wide=True),
    Column("cut", "micro-batch", _cut),
    Column("tokens_per_second", "tokens/s ↑", _whole, more_is_better=True),
    Column("training_seconds", "training s ↓", _whole),
    Column("tokens_to_adherence", "tokens to 0.9 ↓", _whole, wide=True),
    Column("seconds_to_adherence", "s to 0.9 ↓", _whole),
    Column("tuning_seconds", "tuning s ↓", _whole),
    Column("run_seconds", "whole run s ↓", _whole),
    Column("cost", "cost ↓", lambda value: f"{value['mean']:.2f}"),
    Column("trained_on", "prompts / sequences / tokens", _trained_on),
    Column("trainable_parameters", "trainable", _count),
    Column("size_on_disk", "size ↓", lambda value: format_bytes(value) if value else "-"),
    Column("cache_bytes_per_token", "cache ↓ a token", format_bytes),
)


def _tells_apart(rows: Sequence[Row], named: Sequence[str], key: str) -> bool:
    """Whether a column tells rows apart that the named ones do not."""
    return len({tuple(row[one] for one in (*named, key)) for row in rows}) > len(
        {tuple(row[one] for one in named) for row in rows}
    )


def shown_columns(rows: Sequence[Row], *, wide: bool) -> list[Column]:
    """Leave out columns that say nothing here: empty ones, and what does not tell rows apart."""
    hidden = set() if wide else {column.key for column in COLUMNS if column.wide}
    if max(len(row["seeds"]) for row in rows) == 1 and len({tuple(row["seeds"]) for row in rows}) == 1:
        hidden.add("seeds")
    named = ["algorithm"]
    if any(row["tuning_seconds"] for row in rows) or _tells_apart(rows, named, "learning_rate"):
        named.append("learning_rate")
    else:
        hidden.add("learning_rate")
    if not _tells_apart(rows, named, "options"):
        hidden.add("options")
    if len({row["memory_budget"] for row in rows}) == 1:
        hidden.add("memory_budget")
    cuts = {tuple(row["cut"].values()) for row in rows if row["cut"]}
    if len(cuts) <= 1 and not any(row["memory_budget"] for row in rows):
        hidden.add("cut")
    if len({row["cache_bytes_per_token"] for row in rows} - {None}) == 1:
        hidden.add("cache_bytes_per_token")
    shown = [
        column for column in COLUMNS if column.key not in hidden and any(row[column.key] is not None for row in rows)
    ]
    return shown + [OwnColumn.of(name) for name in dict.fromkeys(name for row in rows for name in row["own"])]
