"""From runs to rows: one row holds all seeds of what is otherwise the same recipe."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftbench.algorithm import rate_of
from ftbench.errors import UsageError, nearest
from ftbench.evaluation.comparison import Difference, compare, correct, verdict
from ftbench.evaluation.crossed import mean_over_seeds
from ftbench.evaluation.statistics import Measured
from ftbench.memory.budget import format_bytes
from ftbench.results.columns import COLUMNS, REFERENCE, Row
from ftbench.results.comparing import comparable, terms
from ftbench.results.figures import OverPrompts, over_prompts, over_seeds, verdicts
from ftbench.results.store import Run

_Held = tuple[list[Run], Row]
"""A row, and the runs that it is made of."""

_OVER_SEEDS = (
    "distinct",
    "peak_memory_bytes",
    "peak_reserved_bytes",
    "tokens_per_second",
    "training_seconds",
    "run_seconds",
    "reply_tokens",
)
"""Figures that every seed has one of."""


@dataclass(frozen=True)
class Group:
    """Rows that can be compared, what they have in common, and the runs that each was made of, seeds in order."""

    terms: dict[str, str]
    rows: list[Row]
    runs: list[list[Run]]


@dataclass(frozen=True)
class Asked:
    """What a table is asked for: the column it is sorted by, the row that others are held against, an hour's price."""

    sort: str | None = None
    against: str | None = None
    price: float | None = None


def build_groups(runs: Sequence[Run], asked: Asked | None = None) -> list[Group]:
    """Make a group of rows of each set of comparable runs.

    Args:
        runs: oldest first.
        asked: by default nothing: the best adherence stands first.

    Raises:
        UsageError: there is no such column, or no such row.
    """
    asked = asked or Asked()
    columns = {column.key: column for column in COLUMNS}
    if asked.sort is not None and asked.sort not in columns:
        raise UsageError(f"no such column '{asked.sort}'; {nearest(asked.sort, columns)}")
    groups = [(members, _rows(_by_seeds(members), asked.price)) for members in comparable(runs)]
    if asked.against is not None:
        _hold_against(asked.against, [held for _, held in groups])
    return [_group(members, _sorted(held, asked.sort)) for members, held in groups]


def _group(members: Sequence[Run], held: Sequence[_Held]) -> Group:
    runs = [seeds for seeds, _ in held]
    return Group(terms(members[0].result) | _one_budget(members), [row for _, row in held], runs)


def _by_seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """Put the seeds of one recipe together, in their order, each once.

    Recipes that differ in what changes no figure (how often it was asked midway, a time limit) are one; of its runs
    under one seed the newest that ended well counts, for a seed that is counted twice would look like two.
    """
    found: dict[str, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: (run.result.status == "ok", run.result.started)):
        recipe = run.result.recipe
        tuned = run.result.tuning is not None
        key = json.dumps([recipe.algorithm, recipe.options, recipe.start, recipe.memory_budget, tuned], sort_keys=True)
        found.setdefault(key, {})[recipe.seed] = run
    return [[seeds[seed] for seed in sorted(seeds)] for seeds in found.values()]


def _one_budget(runs: Sequence[Run]) -> dict[str, str]:
    """Name the memory budget where it is the same for all; where not, it has a column."""
    budgets = {run.result.recipe.memory_budget for run in runs}
    if len(budgets) > 1:
        return {}
    budget = budgets.pop()
    return {"memory budget": format_bytes(budget) if budget else "none"}


def _rows(rows: Sequence[list[Run]], price: float | None) -> list[_Held]:
    """Make a row of the seeds of each recipe; those that ended well make its figures."""
    made_of = [[run for run in runs if run.result.status == "ok"] or runs for runs in rows]
    return [
        (runs, _row(runs, of, price, figures))
        for runs, of, figures in zip(rows, made_of, over_prompts(made_of), strict=True)
    ]


def _row(runs: Sequence[Run], of: Sequence[Run], price: float | None, figures: OverPrompts) -> Row:
    first = of[0].result
    recipe, measures = first.recipe, first.measures
    row: Row = {
        "algorithm": recipe.algorithm,
        "seeds": [run.result.recipe.seed for run in of],
        "options": ", ".join(f"{key}={value}" for key, value in recipe.options.items()),
        "learning_rate": rate_of(recipe.options),
        "start": f"{first.start.run} ({first.start.tokens:,} tokens)" if first.start else None,
        "memory_budget": recipe.memory_budget,
        "status": first.status if len(of) == len(runs) else f"{first.status} ({len(of)} of {len(runs)} seeds)",
        "reason": "; ".join(dict.fromkeys(run.result.reason for run in runs if run.result.reason)) or None,
        "adherence": _dumped(figures.adherence),
        "difference": None,
        "adherence_under_attack": _dumped(figures.under_attack),
        "forgetting": _dumped(figures.forgetting),
    }
    row |= {name: _dumped(over_seeds(of, name)) for name in _OVER_SEEDS}
    for name in ("tokens_to_adherence", "seconds_to_adherence"):
        every = all(getattr(run.result.measures, name) is not None for run in of)
        row[name] = _dumped(over_seeds(of, name)) if every else None
    seconds, agreement = row["run_seconds"], over_seeds(of, "agreement")
    row |= {
        "tuning_seconds": _tuning_seconds(of),
        "cost": _scaled(seconds, price / 3600) if seconds and price is not None else None,
        "memory_kind": measures.memory_kind,
        "cut": {"micro_batch_tokens": measures.micro_batch_tokens, "checkpointing": measures.checkpointing}
        if measures.micro_batch_tokens
        else None,
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
        "own": {
            name: _dumped(mean_over_seeds([run.result.measures.own.get(name, math.nan) for run in of]))
            for name in measures.own
        },
        "judge_auc": first.judge.auc if first.judge else None,
        "judge_agreement": agreement.mean if agreement else None,
        "judge_warning": first.judge.warning if first.judge else None,
        "runs": [str(run.folder.name) for run in runs],
    }
    return row


def _tuning_seconds(runs: Sequence[Run]) -> Row | None:
    """What it cost to find the learning rate: once for all seeds."""
    tuning = runs[0].result.tuning
    return None if tuning is None else _dumped(Measured(mean=tuning.seconds))


def _dumped(value: Measured | None) -> Row | None:
    return None if value is None else dict(vars(value))  # there are twenty a row, and model_dump takes ten times longer


def _scaled(value: Row, factor: float) -> Row:
    return {key: part * factor if key != "n" and part is not None else part for key, part in value.items()}


def _hold_against(name: str, groups: Sequence[Sequence[_Held]]) -> None:
    """Fill in each row's difference in adherence from the one called `name`, in every group that has it.

    A row is held against that of its own memory budget: under another, both may have trained otherwise. What trains
    nothing, and is run once in a sweep, is the same under all.
    """
    known = {called for held in groups for _, row in held for called in (row["algorithm"], *row["runs"])}
    if name not in known:
        raise UsageError(f"--against {name}: no such row; {nearest(name, known)}")
    for held in groups:
        others: list[tuple[Row, Difference]] = []
        references = _references(name, held)
        for reference, of in references:
            anywhere = len(references) == 1 and not _has_seed(reference[0])
            of["difference"] = {**Difference(mean=0.0, seeds=len(of["seeds"])).model_dump(), "verdict": REFERENCE}
            others += [
                (row, _difference(runs, reference))
                for runs, row in held
                if row is not of and row["adherence"] and (anywhere or row["memory_budget"] == of["memory_budget"])
            ]
        for (row, _), found in zip(others, correct([one for _, one in others]), strict=True):
            row["difference"] = {**found.model_dump(), "verdict": verdict(found)}


def _references(name: str, held: Sequence[_Held]) -> list[_Held]:
    """Return the rows called `name`, one at most of each memory budget."""
    found: dict[int | None, _Held] = {}
    for runs, row in held:
        if name == row["algorithm"] or name in row["runs"]:
            other = found.setdefault(row["memory_budget"], (runs, row))[1]
            if other is not row:
                several = f"{other['runs'][0]}, {row['runs'][0]}"
                raise UsageError(f"--against {name}: several rows are that; name one of their runs: {several}")
    return list(found.values())


def _difference(runs: Sequence[Run], reference: Sequence[Run]) -> Difference:
    """Compare two rows by the seeds that both have."""
    pairs = _paired(*([run for run in each if run.result.status == "ok"] for each in (runs, reference)))
    table = verdicts([run for side in zip(*pairs, strict=True) for run in side], "on_topic") if pairs else None
    if table is None:
        return Difference(mean=math.nan, seeds=len(pairs))
    found = compare(table[: len(pairs)], table[len(pairs) :])
    return found.model_copy(update={"seedless": not any(_has_seed(run) for pair in pairs for run in pair)})


def _paired(runs: Sequence[Run], others: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pair the runs of two rows by seed; what trains nothing is the same under every seed."""
    if others and not _has_seed(others[0]):
        return [(run, others[0]) for run in runs]
    if runs and not _has_seed(runs[0]):
        return [(runs[0], run) for run in others]
    by_seed = {run.result.recipe.seed: run for run in others}
    return [(run, by_seed[run.result.recipe.seed]) for run in runs if run.result.recipe.seed in by_seed]


def _has_seed(run: Run) -> bool:
    """Whether another seed could come out differently: whether anything was trained."""
    return run.result.measures.training_tokens is not None


def _sorted(held: Sequence[_Held], sort: str | None) -> list[_Held]:
    key = sort or "adherence"
    more = next(column.more_is_better for column in COLUMNS if column.key == key)

    def rank(one: _Held) -> tuple[bool, Any]:
        value = one[1][key]
        value = value.get("mean", value.get("tokens")) if isinstance(value, dict) else value
        missing = value is None or (isinstance(value, float) and not math.isfinite(value))
        if isinstance(value, int | float) and more:
            value = -value
        return missing, 0 if missing else value

    return sorted(held, key=rank)
