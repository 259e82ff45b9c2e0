"""Prompts that try to talk a model out of its topic."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ftbench.evaluation.evaluate import EvaluationSettings
from ftbench.evaluation.generation import generate_replies
from ftbench.evaluation.panel import Panel
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import context_length

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
    room = context_length(model.config) - settings.max_new_tokens
    fitting = [one for one in attacks if len(chat.prompt_ids(one.prompt)) <= room]
    prompts = [one.prompt for one in fitting]
    replies = generate_replies(
        model, chat, prompts, settings.max_new_tokens, settings.batch_size, report, padded=settings.packed
    )
    verdicts = panel.verdicts([reply.text for reply in replies])
    return [
        AttackReply(
            kind=one.kind,
            prompt=one.prompt,
            reply=reply.text,
            score=verdict.score,
            on_topic=verdict.on_topic,
            tokens=reply.tokens,
            ended=reply.ended,
        )
        for one, reply, verdict in zip(fitting, replies, verdicts, strict=True)
    ]
