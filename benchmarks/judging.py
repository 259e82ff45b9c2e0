"""How good the judges and the guard are: on held-out gold, on shuffles of it, and on recorded replies.

python benchmarks/judging.py oasst1-en-validation.jsonl                 minutes; without the file, the sample alone

Gold: people's replies that the judges were not trained on. Shuffles: of each on-topic one of six words or more, five in
each of three ways: as it was written, in bare words, and these dressed up as a sentence, with a capital and a stop.
Recorded: the replies of the runs in benchmarks/quick and benchmarks/oasst1-validation, judged anew. A line a topic is
added to benchmarks/judging/cpu.jsonl; what is there is not measured again.
"""

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftbench.data.task import TaskData, build_task
from ftbench.evaluation.guard import MIN_ORDER_WORDS
from ftbench.evaluation.panel import Panel
from ftbench.evaluation.statistics import kappa
from ftbench.evaluation.tfidf import Tfidf
from ftbench.execution.judging import judge_facts, train_panel
from ftbench.recipe import read_recipe
from ftbench.results.store import Run, read_runs

HERE = Path(__file__).parent
SHUFFLES = 5
TASKS = (
    ("trains", "quick", "quick"),
    ("gardening", "quick", None),
    ("programming", "oasst1-smollm2", "oasst1-validation"),
)
"""Topic, recipe, and the folder of recorded runs."""


def main() -> None:
    """Measure what is not there yet, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="OASST1's English validation messages")
    given = parser.parse_args()
    path = HERE / "judging" / "cpu.jsonl"
    path.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for topic, recipe, recorded in TASKS:
        row = next((row for row in rows if row["topic"] == topic), None)
        if row is None and (recipe == "quick" or given.file):
            row = _measure(topic, recipe, given.file, recorded)
            with path.open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if row:
            _print(row)


def _measure(topic: str, name: str, file: str | None, recorded: str | None) -> dict[str, Any]:
    recipe = read_recipe(name).change(topic=topic, **({} if name == "quick" else {"data": file}))
    data = build_task(recipe.data, recipe.topic, recipe.lang, recipe.evaluation_prompts)
    panel = train_panel(Tfidf, data, recipe)
    facts = judge_facts(panel, data, recipe)
    return {
        "topic": topic,
        "judge": facts.version,
        "auc": round(facts.auc, 4),
        "second_auc": None if facts.second_auc is None else round(facts.second_auc, 4),
        "gold": {
            "on topic": _refused(panel, data.held_out_on_topic),
            "ordinary": _refused(panel, data.held_out_ordinary),
        },
        "shuffles_found": facts.shuffles_found,
        "on_topic_shuffles": {way: _shuffled(panel, data, shuffle) for way, shuffle in WAYS.items()},
        "recorded": [_again(panel, run) for run in read_runs(HERE / recorded)[0]] if recorded else [],
    }


def _refused(panel: Panel, replies: tuple[str, ...]) -> dict[str, Any]:
    """Return which of real replies the guard takes for degenerate."""
    refused = [reply for reply in replies if panel.guard.fault(reply)]
    return {"replies": len(replies), "refused": len(refused), "texts": [reply[:160] for reply in refused]}


def _shuffled(panel: Panel, data: TaskData, shuffle: "Shuffle") -> dict[str, float]:
    """Return which share of shuffles is found, and which passes for on topic all the same."""
    draw = random.Random(0)
    long = [reply for reply in data.held_out_on_topic if len(reply.split()) >= MIN_ORDER_WORDS]
    verdicts = panel.verdicts([shuffle(draw, reply, panel.guard.words) for reply in long for _ in range(SHUFFLES)])
    return {
        "found": round(sum(one.degenerate is not None for one in verdicts) / len(verdicts), 4),
        "on topic": round(sum(one.on_topic for one in verdicts) / len(verdicts), 4),
    }


def _again(panel: Panel, run: Run) -> dict[str, Any]:
    """Judge a run's replies anew."""
    items = run.replies()
    verdicts = panel.verdicts([item.reply for item in items])
    both = [(one.on_topic, one.second) for one in verdicts if one.second is not None]
    lost = [(item.on_topic, one.degenerate) for item, one in zip(items, verdicts, strict=True)]
    return {
        "algorithm": run.result.recipe.algorithm,
        "replies": len(items),
        "on_topic_then": sum(item.on_topic for item in items),
        "on_topic": sum(one.on_topic for one in verdicts),
        "degenerate": dict(Counter(one.degenerate for one in verdicts if one.degenerate)),
        "degenerate_that_were_on_topic": sum(then and fault is not None for then, fault in lost),
        "agreement": round(sum(one == other for one, other in both) / len(both), 4),
        "kappa": kappa([one for one, _ in both], [other for _, other in both]),
    }


Shuffle = Callable[[random.Random, str, int], str]


def _as_written(draw: random.Random, reply: str, words: int) -> str:
    written = reply.split()[:words]
    return " ".join(draw.sample(written, len(written)))


def _bare(draw: random.Random, reply: str, words: int) -> str:
    found = re.findall(r"\w+", reply.lower())[:words]
    return " ".join(draw.sample(found, len(found)))


def _dressed_up(draw: random.Random, reply: str, words: int) -> str:
    return _bare(draw, reply, words).capitalize() + "."


WAYS: dict[str, Shuffle] = {"as written": _as_written, "bare": _bare, "dressed up": _dressed_up}


def _print(row: dict[str, Any]) -> None:
    print(f"{row['topic']}: {row['judge']}, AUC {row['auc']:.3f}, word list {row['second_auc']:.3f}")
    for kind, found in row["gold"].items():
        print(f"  gold, {kind}: {found['refused']} of {found['replies']} refused")
    print(f"  shuffles of all gold found: {row['shuffles_found']:.1%}")
    for way, found in row["on_topic_shuffles"].items():
        print(f"  on-topic shuffles, {way}: {found['found']:.1%} found, {found['on topic']:.1%} pass for on topic")
    for run in row["recorded"]:
        again = (
            f"{run['on_topic_then']} to {run['on_topic']} of {run['replies']} on topic, {run['degenerate'] or 'none'}"
        )
        same = "-" if run["kappa"] is None else f"{run['kappa']:.2f}"
        print(f"  {run['algorithm']}: {again}; judges agree on {run['agreement']:.2f}, kappa {same}")


if __name__ == "__main__":
    main()
