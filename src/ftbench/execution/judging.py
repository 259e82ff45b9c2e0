"""The judges of a run: trained by the first run that needs them, read by the others."""

import hashlib
import json
from typing import Any

from pydantic import TypeAdapter

from ftbench.data.task import TaskData, TopicTask
from ftbench.data.topics import Topic, read_topic
from ftbench.errors import UsageError, returned
from ftbench.evaluation import guard, wordlist
from ftbench.evaluation.guard import Checked, GuardTraining, Limits
from ftbench.evaluation.judge import Gold, Judge
from ftbench.evaluation.panel import Panel
from ftbench.evaluation.wordlist import train_word_list
from ftbench.execution.once import once
from ftbench.recipe import Recipe
from ftbench.results.result import JudgeFacts


def train_panel(kind: type[Judge], data: TaskData, recipe: Recipe) -> Panel:
    """Train the judge that the recipe names, the guard before it, and the second judge where the topic has words."""
    gold = _gold(data, recipe)
    training = GuardTraining(gold)
    limits = once("guard", {"gold": gold.digest()}, TypeAdapter(Limits), training.limits)
    topic = _words(recipe.topic) if recipe.task == TopicTask.name else None
    second = train_word_list(topic, gold) if topic else None
    return Panel(_train_judge(kind, gold), training.guard(limits), second)


def judge_facts(panel: Panel, data: TaskData, recipe: Recipe) -> JudgeFacts:
    """Name the judges, and measure them on held-out gold replies."""
    held = panel.test(data.held_out_on_topic, data.held_out_ordinary)
    checked = once(
        "guard-check",
        {"data": data.digest(), "words": panel.guard.words},
        TypeAdapter(Checked),
        lambda: panel.guard.check([*data.held_out_on_topic, *data.held_out_ordinary]),
    )
    version = f"{panel.judge.name}-{panel.judge.version}"
    made_of = json.dumps([version, guard.VERSION, _gold(data, recipe).digest()])
    return JudgeFacts(
        version=version,
        auc=held.auc,
        threshold=panel.judge.threshold,
        digest=hashlib.sha256(made_of.encode()).hexdigest(),
        refused=checked.refused,
        shuffles_found=checked.shuffles_found,
        second=wordlist.VERSION if panel.second else None,
        second_auc=held.second_auc,
    )


def _gold(data: TaskData, recipe: Recipe) -> Gold:
    return Gold(data.topic, data.on_topic, data.ordinary, recipe.max_new_tokens)


def _train_judge(kind: type[Judge], gold: Gold) -> Judge:
    """Train a judge, or take up what one of the same kind and version has learnt of the same gold.

    What a plugin's judge has learnt is kept only if it says how, and only as long as the plugin's code is the same.
    """

    def make() -> Judge:
        return returned(kind.train(gold), Judge, kind, "train")  # type: ignore[type-abstract]

    if kind.learnt is Judge.learnt:
        return make()

    def train() -> Any:
        return make().learnt()

    of = {"gold": gold.digest(), "topic": gold.topic, "name": kind.name, "version": kind.version, "code": _code(kind)}
    return kind.from_learnt(once("judge", of, TypeAdapter(Any), train))


def _code(kind: type[Judge]) -> str:
    """SHA-256 of the module that a judge is from: a plugin being written changes without its version changing."""
    import inspect
    from pathlib import Path

    source = inspect.getsourcefile(kind)
    return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""


def _words(topic: str) -> Topic | None:
    """Return the topic's word list; the user's own pairs may be about what has none."""
    try:
        return read_topic(topic)
    except UsageError:
        return None
