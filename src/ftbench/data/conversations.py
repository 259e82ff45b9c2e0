"""OASST1's messages (Köpf et al. 2023, arXiv:2304.07327) become single-turn conversations."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ftbench.data.lines import Row
from ftbench.errors import FtbenchError

UNSUITABLE = ("spam", "lang_mismatch", "pii", "not_appropriate", "hate_speech", "sexual_content")
"""Labels of the schema for which a mean vote of one half or more leaves a message out."""

TOPIC_LABEL = "topic:"
"""Our own labels on a reply, "topic:NAME", say that it was written to be on that topic."""


@dataclass(frozen=True)
class Reply:
    """An assistant's answer to a prompt, and the topics it was written for."""

    text: str
    topics: frozenset[str]


@dataclass(frozen=True)
class Conversation:
    """A root prompt and the replies that people gave it, best rank first."""

    prompt: str
    replies: tuple[Reply, ...]


@dataclass(frozen=True)
class Selection:
    """What a source gave: conversations, and how many messages were left out for which reason."""

    conversations: tuple[Conversation, ...]
    left_out: dict[str, int]


def select_conversations(rows: Iterable[Row], lang: str) -> Selection:
    """Keep root prompts with at least one usable reply.

    Raises:
        FtbenchError: a row lacks a field of the schema, or nothing is left (the reasons are counted in the message).
    """
    left_out: Counter[str] = Counter()
    prompts: dict[str, dict[str, Any]] = {}
    replies: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    seen = 0
    for where, row in rows:
        for message in _messages(row, where):
            seen += 1
            reason = _unfit(message, lang)
            if reason:
                left_out[reason] += 1
            elif message["role"] == "prompter" and message["parent_id"] is None:
                prompts[message["message_id"]] = message
            elif message["role"] == "assistant" and message["parent_id"] is not None:
                replies[message["parent_id"]].append(message)
    conversations = tuple(_conversation(prompt, replies[key]) for key, prompt in prompts.items() if replies[key])
    if not conversations:
        reasons = (
            ", ".join(f"{count} {reason}" for reason, count in left_out.most_common()) or "no root prompt replied to"
        )
        raise FtbenchError(
            f"none of {seen} messages is left as a single-turn pair in '{lang}': {reasons}; try another --lang or file"
        )
    return Selection(conversations, dict(left_out))


def _messages(row: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield the row itself, or, of a tree export, every message of the tree."""
    if isinstance(row.get("prompt"), dict):
        state = row.get("tree_state")
        pending = [(row["prompt"], None)]
        while pending:
            message, parent = pending.pop()
            if not isinstance(message, dict):
                raise FtbenchError(f"{where}: a message of the tree is not a JSON object")
            children = message.get("replies") or []
            if not isinstance(children, list):
                raise FtbenchError(f"{where}: field 'replies' is not a list")
            yield _checked({"parent_id": parent, "tree_state": state, **message}, where)
            pending.extend((child, message.get("message_id")) for child in children)
    else:
        yield _checked(row, where)


def _checked(message: dict[str, Any], where: str) -> dict[str, Any]:
    for field in ("message_id", "text", "role"):
        if not isinstance(message.get(field), str):
            raise FtbenchError(f"{where}: field '{field}' is missing or not text; OASST1's message schema is needed")
    parent = message.setdefault("parent_id", None)
    if parent is not None and not isinstance(parent, str):
        raise FtbenchError(f"{where}: field 'parent_id' is neither text nor null")
    if message["role"] not in ("prompter", "assistant"):
        raise FtbenchError(f"{where}: role {message['role']!r} is neither 'prompter' nor 'assistant'")
    if not isinstance(message.get("rank"), int | float | None):
        raise FtbenchError(f"{where}: field 'rank' is neither a number nor null")
    try:
        _labels(message)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FtbenchError(f"{where}: field 'labels' is not as OASST1's message schema has it") from error
    return message


def _unfit(message: dict[str, Any], lang: str) -> str | None:
    """Say why a message is left out, by the schema's own fields."""
    if message.get("deleted"):
        return "deleted"
    if message.get("review_result", True) is not True:
        return "unreviewed or turned down"
    if message.get("tree_state") not in (None, "ready_for_export"):
        return "in unfinished trees"
    if message.get("lang") != lang:
        return "in another language"
    if not message["text"].strip():
        return "empty"
    if any(value >= 0.5 for name, value in _labels(message).items() if name in UNSUITABLE):
        return "unsuitable"
    return None


def _labels(message: dict[str, Any]) -> dict[str, float]:
    """Read labels as the data set has them ({"name": [...], "value": [...]}) or as tree exports do ({name: {...}})."""
    labels = message.get("labels") or {}
    if isinstance(labels.get("name"), list):
        return {str(name): float(value) for name, value in zip(labels["name"], labels["value"], strict=True)}
    return {name: float(vote["value"]) for name, vote in labels.items() if isinstance(vote, dict) and "value" in vote}


def _conversation(prompt: dict[str, Any], replies: list[dict[str, Any]]) -> Conversation:
    ranked = sorted(replies, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0, reply["message_id"]))
    return Conversation(prompt["text"].strip(), tuple(_reply(reply) for reply in ranked))


def _reply(message: dict[str, Any]) -> Reply:
    topics = {
        name.removeprefix(TOPIC_LABEL)
        for name, value in _labels(message).items()
        if name.startswith(TOPIC_LABEL) and value >= 0.5
    }
    return Reply(message["text"].strip(), frozenset(topics))
