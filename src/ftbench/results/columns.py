"""The table's columns: what stands in them, and how a person reads it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ftbench.memory.budget import format_bytes

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: its key in JSON and CSV, its heading, how a person reads its value, and whether more is better.

    One that is `wide` is printed only where a wide table is asked for. `about` says what it is, in a sentence with the
    unit.
    """

    key: str
    heading: str
    show: Callable[[Any], str]
    more_is_better: bool = False
    wide: bool = False
    about: str = ""

    @property
    def better(self) -> str:
        """Which way is better, as the heading's arrow has it; empty where neither is."""
        return "more" if "↑" in self.heading else "less" if "↓" in self.heading else ""

    def value(self, row: Row) -> Any:
        """Return what stands in it, None where nothing does."""
        return row[self.key]


@dataclass(frozen=True)
class OwnColumn(Column):
    """A column of what an algorithm measured of itself."""

    @classmethod
    def of(cls, name: str) -> "OwnColumn":
        """Return the column of a figure."""
        heading = name.replace("_", " ")
        return cls(name, heading, lambda value: f"{value['mean']:.4g}", about="What the algorithm measured of itself.")

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
    Column("algorithm", "algorithm", str, about="What changed the model's behaviour; base is the untouched model."),
    Column(
        "seeds",
        "seeds",
        lambda value: str(len(value)),
        about="How many seeds the row holds. A seed shuffles the examples and draws what an algorithm adds.",
    ),
    Column("options", "options", str, about="The algorithm's own options."),
    Column(
        "learning_rate",
        "learning rate",
        lambda value: f"{value:g}",
        about="The highest of training; it rises to it and falls to a tenth. Shown where one was sought.",
    ),
    Column("start", "started from", str, about="The run whose model training started from, and its tokens."),
    Column("memory_budget", "memory budget", format_bytes, about="Bytes that training was allowed to take; enforced."),
    Column(
        "status",
        "status",
        str,
        about="ok, out-of-memory, timed-out, failed, or skipped where the algorithm does not apply.",
    ),
    Column(
        "adherence",
        "adherence ↑ [95 %]",
        _share,
        more_is_better=True,
        about="Share, 0 to 1, of held-out prompts whose reply the judge finds as the task teaches: of the topic task, "
        "on its topic though the prompt is not.",
    ),
    Column(
        "difference",
        "against another ↑ [95 %]",
        _difference,
        more_is_better=True,
        about="Adherence less that of the row that others are held against, paired by prompt and by seed. Called "
        "better or worse only where a test, corrected for the number of rows, says so.",
    ),
    Column(
        "adherence_under_attack",
        "under attack ↑ [95 %]",
        _share,
        more_is_better=True,
        about="Share, 0 to 1, of prompts that try to talk the model out of what it was taught, and get a reply that "
        "adheres all the same.",
    ),
    Column(
        "distinct",
        "distinct ↑",
        _mean_share,
        more_is_better=True,
        about="Share, 0 to 1, of replies that differ from all others. A model that says one sentence as taught to "
        "everything has adherence 1 and distinct 0.",
    ),
    Column(
        "forgetting",
        "forgetting ↓ nats/token [95 %]",
        _change,
        about="Rise of the loss, in nats per token, on people's ordinary replies to the same prompts, against the "
        "untouched model. Below 0 those replies have become more likely.",
    ),
    Column(
        "judge_agreement",
        "judges agree ↑",
        lambda value: f"{value:.2f}",
        more_is_better=True,
        wide=True,
        about="Share, 0 to 1, of replies of which a second judge, of another kind, says the same as the first.",
    ),
    Column("reply_tokens", "tokens a reply", _whole, wide=True, about="Mean length of a reply, in tokens."),
    Column(
        "peak_memory_bytes",
        "peak memory ↓",
        _bytes,
        about="Highest memory while training; without training, while evaluating. On CUDA what the allocator handed "
        "out; on the CPU the live tensors, counted one by one.",
    ),
    Column(
        "peak_reserved_bytes",
        "reserved ↓",
        _bytes,
        wide=True,
        about="What CUDA's allocator held at its highest, handed out or not.",
    ),
    Column(
        "cut",
        "micro-batch",
        _cut,
        about="Real tokens of one forward pass, at most, and whether activations were computed again in the backward "
        "pass (checkpointing) to save memory.",
    ),
    Column(
        "tokens_per_second",
        "tokens/s ↑",
        _whole,
        more_is_better=True,
        about="Real tokens of prompts and completions trained on a second; no padding counted.",
    ),
    Column("training_seconds", "training s ↓", _whole, about="Seconds of training alone."),
    Column(
        "tokens_to_adherence",
        "tokens to 0.9 ↓",
        _whole,
        wide=True,
        about="Tokens trained on when a few prompts, asked midway, first had adherence 0.9.",
    ),
    Column(
        "seconds_to_adherence",
        "s to 0.9 ↓",
        _whole,
        about="Seconds of training until a few prompts, asked midway, first had adherence 0.9; the asking not counted.",
    ),
    Column(
        "tuning_seconds",
        "tuning s ↓",
        _whole,
        about="Seconds of all runs that sought the learning rate, on prompts that are not among the evaluation's.",
    ),
    Column(
        "run_seconds",
        "whole run s ↓",
        _whole,
        about="Seconds of all phases: reading, loading, training, saving, loading again, evaluating.",
    ),
    Column(
        "cost",
        "cost ↓",
        lambda value: f"{value['mean']:.2f}",
        about="The whole run at the price of an hour that was given, in that price's currency.",
    ),
    Column(
        "trained_on",
        "prompts / sequences / tokens",
        _trained_on,
        about="What was trained on. Preferences take two completions (sequences) a prompt, so that the same tokens "
        "hold fewer prompts.",
    ),
    Column("trainable_parameters", "trainable", _count, about="Parameters that training changed."),
    Column(
        "size_on_disk",
        "size ↓",
        lambda value: format_bytes(value) if value else "-",
        about="Bytes of what was saved: an adapter, or a whole model.",
    ),
    Column(
        "cache_bytes_per_token",
        "cache ↓ a token",
        format_bytes,
        about="Bytes by which the cache grows with every token while generating.",
    ),
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
