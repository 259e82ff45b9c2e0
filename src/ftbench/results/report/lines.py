"""What the report's charts are drawn from: rows with their runs, each with a name and a mark of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ftbench.memory.budget import format_bytes
from ftbench.recipe import BASELINE
from ftbench.results.columns import Row
from ftbench.results.rows import Group
from ftbench.results.store import Run
from ftbench.results.table import shared_terms

COLOURS = 7
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "x", "star")
_DASHES = ("solid", "dash", "dot", "dashdot")
_LONGEST = 40


@dataclass(frozen=True)
class Mark:
    """How a series looks in every chart; the colour is a variable of the page's style, which knows light and dark."""

    colour: str
    symbol: str
    dash: str


@dataclass(frozen=True)
class Line:
    """A row of the table with its runs.

    `series` names the algorithm, with the options that tell it apart; `label` names the budget too, where there are
    several, and is the row's alone within its group.
    """

    row: Row
    runs: Sequence[Run]
    series: str
    label: str
    mark: Mark

    @property
    def trained(self) -> bool:
        """Whether it was trained at all; its memory and speed are those of training then."""
        return self.row["trained_on"] is not None

    def ok(self) -> list[Run]:
        """Return the runs that ended well."""
        return [run for run in self.runs if run.result.status == "ok"]


@dataclass(frozen=True)
class View:
    """A group of the table as the page shows it; `own` is what sets it apart from the others."""

    key: str
    group: Group
    own: dict[str, str]
    lines: list[Line]

    def series(self) -> dict[str, Mark]:
        """Return what the charts have marks for, in the table's order."""
        return {line.series: line.mark for line in self.lines}


def build_views(groups: Sequence[Group]) -> list[View]:
    """Name every row and give every series its mark: the same one in all groups."""
    shared = shared_terms(groups) if groups else {}
    series = _series(groups)
    marks = _marks(name for group in series for name in group)
    views = []
    for number, (group, named) in enumerate(zip(groups, series, strict=True), 1):
        labels = _labels(group, named)
        lines = [
            Line(row, runs, name, label, marks[name])
            for row, runs, name, label in zip(group.rows, group.runs, named, labels, strict=True)
        ]
        own = {key: value for key, value in group.terms.items() if shared.get(key) != value}
        views.append(View(f"group-{number}", group, own, lines))
    return views


def _marks(names: Iterator[str]) -> dict[str, Mark]:
    """Colours take turns, and so do the symbols, which are one more: the pairs repeat after 56."""
    others = [name for name in dict.fromkeys(names) if name != BASELINE]
    marks = {
        name: Mark(
            f"var(--series-{index % COLOURS + 1})",
            _SYMBOLS[index % len(_SYMBOLS)],
            _DASHES[index // COLOURS % len(_DASHES)],
        )
        for index, name in enumerate(others)
    }
    return {BASELINE: Mark("var(--series-base)", "circle", "dot"), **marks}


def _series(groups: Sequence[Group]) -> list[list[str]]:
    """Name each row's algorithm, with the options that differ between rows of that algorithm, anywhere on the page."""
    variants: dict[str, list[dict[str, str]]] = {}
    for runs in (runs for group in groups for runs in group.runs):
        options = _told_apart_by(runs[0])
        known = variants.setdefault(runs[0].result.recipe.algorithm, [])
        if options not in known:
            known.append(options)
    return [[_series_name(runs[0], variants) for runs in group.runs] for group in groups]


def _series_name(run: Run, variants: dict[str, list[dict[str, str]]]) -> str:
    algorithm, own = run.result.recipe.algorithm, _told_apart_by(run)
    several = variants[algorithm]
    if len(several) == 1:
        return algorithm
    keys = dict.fromkeys(key for options in several for key in options)
    differing = [key for key in keys if len({options.get(key) for options in several}) > 1]
    name = " ".join([algorithm, *(f"{key}={own[key]}" for key in differing if key in own)])
    return name if name != algorithm and len(name) <= _LONGEST else f"{algorithm} #{several.index(own) + 1}"


def _told_apart_by(run: Run) -> dict[str, str]:
    recipe, start = run.result.recipe, run.result.start
    return dict(_flat(recipe.options)) | ({"from": start.algorithm} if start else {})


def _flat(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, f"{value:g}" if isinstance(value, float) else str(value)


def _labels(group: Group, series: Sequence[str]) -> list[str]:
    budgets = {row["memory_budget"] for row in group.rows}
    labels: list[str] = []
    for row, name in zip(group.rows, series, strict=True):
        label = name if len(budgets) == 1 else f"{name}, {budget_name(row['memory_budget'])}"
        again = sum(one == label or one.startswith(f"{label} (") for one in labels)
        labels.append(f"{label} ({again + 1})" if again else label)
    return labels


def budget_name(budget: int | None) -> str:
    """Name a memory budget in bytes shortly: 2 GiB."""
    return short_bytes(budget) if budget else "no budget"


def short_bytes(size: float) -> str:
    """Write bytes with no more places than they need: 2 GiB, 1.5 GiB."""
    number, _, unit = format_bytes(int(size)).partition(" ")
    return f"{float(number):g} {unit}"
