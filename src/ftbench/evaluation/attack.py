"""Prompts that try to talk a model out of its topic."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ftbench.evaluation.evaluate import EvaluationSettings, judged_replies
from ftbench.evaluation.panel import Panel
from ftbench.models.chat import ChatFormat

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Attack:
    """A prompt, and the kind of trick that it tries."""

    kind: str
    prompt: str


class AttackReply(BaseModel):
    """One attack, the reply, and its score; a line of attacks.jsonl."""

    model_config = ConfigDict(frozen=True)

    kind: str
    prompt: str
    reply: str
    score: float
    on_topic: bool
    tokens: int
    ended: bool


def shipped_attacks(count: int) -> list[Attack]:
    """Return the first `count` shipped attacks; their kinds take turns, so that few still hold all kinds."""
    lines = (files("ftbench.evaluation") / "attacks.jsonl").read_text("utf-8").splitlines()
    return [Attack(**json.loads(line)) for line in lines][:count]


def attack(
    model: "PreTrainedModel",
    chat: ChatFormat,
    attacks: Sequence[Attack],
    panel: Panel,
    settings: EvaluationSettings,
    report: Callable[[int], None],
) -> list[AttackReply]:
    """Return the judged replies to the attacks that fit into the model's context."""
    judged = judged_replies(model, chat, [one.prompt for one in attacks], panel, settings, report)
    return [
        AttackReply(
            kind=attacks[one.place].kind,
            prompt=attacks[one.place].prompt,
            reply=one.reply.text,
            score=one.verdict.score,
            on_topic=one.verdict.on_topic,
            tokens=one.reply.tokens,
            ended=one.reply.ended,
        )
        for one in judged
    ]
