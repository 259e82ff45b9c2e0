"""Replies side by side: what the page's browser shows and searches."""

from collections.abc import Sequence
from typing import Any

from ftbench.errors import FtbenchError
from ftbench.evaluation.attack import AttackReply
from ftbench.evaluation.evaluate import EvaluatedPrompt
from ftbench.recipe import BASELINE
from ftbench.results.report.lines import Line, View
from ftbench.results.store import REPLIES, Run

Answers = Sequence[EvaluatedPrompt | AttackReply]
_KINDS = {"evaluation": "evaluation prompts", "attacks": "prompts that attack"}


def reply_sets(views: Sequence[View], *, seeds: int | None, prompts: int | None) -> tuple[list[dict[str, Any]], int]:
    """Gather the replies of each group, once for its evaluation prompts and once for those that attack.

    Args:
        views: the groups.
        seeds: of a row, at most; None is all.
        prompts: of a set, at most; None is all.

    Returns:
        The sets that are not empty, as JSON values, and how many runs that ended well had no replies to be read.
    """
    sets, missing = [], 0
    for view in views:
        read, lost = _read(view, seeds)
        missing += lost
        for kind, title in _KINDS.items():
            found = _set(view, [(line, run, answers[kind]) for line, run, answers in read], prompts)
            if found:
                where = "" if len(views) == 1 else f", group {view.key.rpartition('-')[2]}"
                sets.append({"title": title + where, **found})
    return sets, missing


def _read(view: View, seeds: int | None) -> tuple[list[tuple[Line, Run, dict[str, Answers]]], int]:
    read: list[tuple[Line, Run, dict[str, Answers]]] = []
    missing = 0
    for line in view.lines:
        for run in line.ok()[:seeds]:
            if not (run.folder / REPLIES).exists():
                missing += 1
                continue
            try:
                read.append((line, run, {"evaluation": run.replies(), "attacks": run.attacks()}))
            except FtbenchError:
                missing += 1
    read.sort(key=lambda one: one[0].row["algorithm"] != BASELINE)  # the untouched model stands first, beside all
    return read, missing


def _set(view: View, read: Sequence[tuple[Line, Run, Answers]], limit: int | None) -> dict[str, Any] | None:
    """Put the answers to one prompt together, prompts in the order in which they were asked."""
    cards: dict[str, dict[str, Any]] = {}
    columns: list[Line] = []
    seeds: set[int] = set()
    for line, run, answers in read:
        if not answers:
            continue
        if line not in columns:
            columns.append(line)
        seeds.add(run.result.recipe.seed)
        for answer in answers:
            card = cards.setdefault(answer.prompt, {"prompt": answer.prompt, "kind": "", "base": None, "replies": []})
            if isinstance(answer, AttackReply):
                card["kind"] = answer.kind
            else:
                card["base"] = card["base"] or answer.base_reply
            card["replies"].append(
                [columns.index(line), run.result.recipe.seed, answer.reply, answer.on_topic, round(answer.score, 2)]
            )
    if not cards:
        return None
    shown = list(cards.values())[:limit]
    if any(line.row["algorithm"] == BASELINE for line in columns):
        for card in shown:
            card["base"] = None  # it has a column of its own
    marks = [{"label": line.label, "symbol": line.mark.symbol, "colour": line.mark.colour} for line in columns]
    return {"columns": marks, "seeds": sorted(seeds), "cards": shown}
