"""What a task is, and the first: keep to one topic whatever the user asks."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal, TypeVar, get_args

from ftbench.data.conversations import Conversation
from ftbench.data.nearness import assign_near
from ftbench.data.pairs import Pair
from ftbench.data.sources import Source, read_source
from ftbench.data.topics import Topic, read_topic, shipped_topics
from ftbench.errors import FtbenchError, UsageError, nearest
from ftbench.recipe import JUDGE

Item = TypeVar("Item")
Split = Literal["evaluation", "validation"]
"""What is held out: the evaluation's prompts, or others for choosing settings, which do without the evaluation's."""

MIN_TRAINING = 8
MIN_EVALUATION = 4
HELD_OUT_SHARE = 4
"""One item in this many, at most, is held out."""


@dataclass(frozen=True)
class HeldOut:
    """How many prompts are held out, at most, and for what."""

    prompts: int
    split: Split = "evaluation"


@dataclass(frozen=True)
class Example:
    """What is trained on: a prompt, the on-topic completion, and the ordinary one where there is one."""

    prompt: str
    chosen: str
    rejected: str | None


@dataclass(frozen=True)
class EvaluationPrompt:
    """A held-out prompt, of whichever split, and the ordinary reply that people gave it."""

    prompt: str
    ordinary: str | None


@dataclass(frozen=True)
class TaskData:
    """Everything that a run reads of the data.

    `on_topic`/`ordinary` train the judge; `held_out_on_topic` and the evaluation's ordinary replies test it.
    """

    topic: str
    origin: str
    train: tuple[Example, ...]
    evaluation: tuple[EvaluationPrompt, ...]
    on_topic: tuple[str, ...]
    ordinary: tuple[str, ...]
    held_out_on_topic: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def held_out_ordinary(self) -> tuple[str, ...]:
        """Ordinary replies to the evaluation prompts."""
        return tuple(item.ordinary for item in self.evaluation if item.ordinary is not None)

    def digest(self) -> str:
        """SHA-256 of all texts: two runs with equal digests read the same data."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class Task(ABC):
    """What is taught, and who judges it. Subclass it in a plugin and return it from `ftbench_tasks`."""

    name: ClassVar[str]
    """What `--task NAME` says."""
    judge: ClassVar[str] = JUDGE
    """The judge that is taken where none is asked for."""

    @abstractmethod
    def build(self, source: Source, topic: str, wanted: HeldOut) -> TaskData:
        """Make training examples and evaluation prompts; `split_examples` does so of examples.

        Args:
            source: the data: conversations, or somebody's own pairs.
            topic: what --topic says: whatever tells one such task from another.
            wanted: what is held out.

        Raises:
            UsageError: there is no such topic.
            FtbenchError: the data hold too little for it.
        """

    def instruction(self, topic: str) -> str | None:
        """Return what a model without training is told to do; None leaves it to the algorithm that prompts."""
        return None


class TopicTask(Task):
    """Keep to one topic whatever the user asks: `--topic` is one that the data or ftbench know, or a file of words."""

    name = "topic"

    def build(self, source: Source, topic: str, wanted: HeldOut) -> TaskData:
        """Use answers that were written for the topic, the user's own pairs, or what a corpus has on the topic."""
        return _build_topic(source, topic, wanted)


def build_task(data: str, topic: str, lang: str, evaluation_prompts: int, split: Split = "evaluation") -> TaskData:
    """Read data that no plugin brings and turn them into the topic task.

    Args:
        data: "sample", "oasst1", or a file.
        topic: the name of one, or a file of words.
        lang: language of the messages.
        evaluation_prompts: held-out prompts, at most; also of the validation split.
        split: with "validation" all that the evaluation holds out is left out, and what is asked is a part of its
            training examples, on which then nothing is trained.

    Raises:
        UsageError: no such data or topic.
        FtbenchError: the data cannot be read, or holds too little for the task.
    """
    return TopicTask().build(read_source(data, lang), topic, HeldOut(evaluation_prompts, split))


def _build_topic(source: Source, topic: str, wanted: HeldOut) -> TaskData:
    if isinstance(source.content, tuple):
        return _from_pairs(source.content, source.origin, topic, wanted)
    conversations = _unique(source.content.conversations, lambda conversation: conversation.prompt)
    written = {name for conversation in conversations for reply in conversation.replies for name in reply.topics}
    if topic in written:
        return _from_written(source, conversations, topic, wanted)
    try:
        found = read_topic(topic)
    except UsageError as error:
        if written and "/" not in topic:
            known = written | set(shipped_topics())
            raise UsageError(f"no such topic '{topic}'; {nearest(topic, known)}, or give a file of words") from error
        raise
    return _from_corpus(source, conversations, found, written, wanted)


def _from_written(source: Source, conversations: Sequence[Conversation], topic: str, wanted: HeldOut) -> TaskData:
    """Use answers that were written for the topic: one chosen and one rejected reply a prompt."""
    examples = []
    for conversation in conversations:
        chosen = next((reply.text for reply in conversation.replies if topic in reply.topics), None)
        rejected = next((reply.text for reply in conversation.replies if not reply.topics), None)
        if chosen is not None and rejected is not None:
            examples.append(Example(conversation.prompt, chosen, rejected))
    return split_examples(source, examples, topic, wanted)


def _from_pairs(pairs: Sequence[Pair], origin: str, topic: str, wanted: HeldOut) -> TaskData:
    """Use the user's own pairs; the topic is what their chosen completions have in common."""
    examples = [Example(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
    return split_examples(Source(tuple(pairs), origin), examples, topic, wanted)


def ordinary_replies(source: Source) -> list[tuple[str, str]]:
    """Return every prompt with the ordinary reply that people gave it first, where there is one."""
    if isinstance(source.content, tuple):
        return [(pair.prompt, pair.rejected) for pair in source.content if pair.rejected is not None]
    found = [
        (conversation.prompt, next((reply.text for reply in conversation.replies if not reply.topics), None))
        for conversation in source.content.conversations
    ]
    return [(prompt, reply) for prompt, reply in found if reply is not None]


def split_examples(source: Source, examples: Sequence[Example], topic: str, wanted: HeldOut) -> TaskData:
    """Hold some examples out, the first of each prompt; the judge learns and is tested on their completions.

    Args:
        source: that they are from.
        examples: all that there are.
        topic: what --topic says.
        wanted: what is held out.

    Raises:
        FtbenchError: there are too few.
    """
    examples = _unique(examples, lambda example: example.prompt)
    held_out, train = hold_out(examples, lambda example: example.prompt, wanted)
    data = TaskData(
        topic=topic,
        origin=source.origin,
        train=tuple(train),
        evaluation=tuple(EvaluationPrompt(example.prompt, example.rejected) for example in held_out),
        on_topic=tuple(example.chosen for example in train),
        ordinary=tuple(example.rejected for example in train if example.rejected is not None),
        held_out_on_topic=tuple(example.chosen for example in held_out),
        left_out=_left_out(source),
    )
    return _checked(data, wanted.split)


def _from_corpus(
    source: Source, conversations: Sequence[Conversation], topic: Topic, written: set[str], wanted: HeldOut
) -> TaskData:
    """Pair off-topic prompts with the corpus's own on-topic replies, near ones first, none used often."""
    off, pool = [], []
    for conversation in conversations:
        ordinary = [reply for reply in conversation.replies if not reply.topics]
        if ordinary and topic.is_off(conversation.prompt) and topic.is_off(ordinary[0].text):
            off.append((conversation, ordinary[0].text))
        else:
            replies = [reply.text for reply in ordinary if topic.is_on(reply.text)]
            if replies:
                pool.append((conversation.prompt, tuple(dict.fromkeys(replies))))
    replies_found = sum(len(replies) for _, replies in pool)
    if replies_found < 2 * MIN_TRAINING or len(off) < MIN_TRAINING + MIN_EVALUATION:
        hint = f"; written answers are there for: {', '.join(sorted(written))}" if written else ""
        raise FtbenchError(
            f"too little on topic '{topic.name}' in {source.origin}: {replies_found} replies on topic (from "
            f"{2 * MIN_TRAINING}), {len(off)} prompts off topic (from {MIN_TRAINING + MIN_EVALUATION}){hint}"
        )
    held_out, train = hold_out(off, lambda item: item[0].prompt, wanted)
    held_out_pool, train_pool = hold_out(pool, lambda item: item[0], HeldOut(len(pool), wanted.split))
    near = [(f"{prompt}\n{reply}", reply) for prompt, replies in train_pool for reply in replies]
    chosen = assign_near([conversation.prompt for conversation, _ in train], [text for text, _ in near])
    data = TaskData(
        topic=topic.name,
        origin=source.origin,
        train=tuple(
            Example(conversation.prompt, near[index][1], ordinary)
            for (conversation, ordinary), index in zip(train, chosen, strict=True)
        ),
        evaluation=tuple(EvaluationPrompt(conversation.prompt, ordinary) for conversation, ordinary in held_out),
        on_topic=tuple(reply for _, reply in near),
        ordinary=tuple(ordinary for _, ordinary in train),
        held_out_on_topic=tuple(reply for _, replies in held_out_pool for reply in replies),
        left_out=_left_out(source),
    )
    return _checked(data, wanted.split)


def _left_out(source: Source) -> dict[str, int]:
    return {} if isinstance(source.content, tuple) else source.content.left_out


def _unique(items: Sequence[Item], prompt: Callable[[Item], str]) -> list[Item]:
    """Keep the first item of every prompt, so that no prompt stands on both sides of the split."""
    kept: dict[str, Item] = {}
    for item in items:
        kept.setdefault(" ".join(prompt(item).lower().split()), item)
    return list(kept.values())


def hold_out(items: Sequence[Item], key: Callable[[Item], str], wanted: HeldOut) -> tuple[list[Item], list[Item]]:
    """Return what is held out, and what is left to train on.

    The choice hangs on the SHA-256 of each key alone, so that every run and every seed holds out the same. Each split
    takes a quarter, at most, of what those before it have left; those before it are in neither list.
    """
    ranked = sorted(items, key=lambda item: hashlib.sha256(key(item).encode()).digest())
    for split in get_args(Split):
        count = min(wanted.prompts, len(ranked) // HELD_OUT_SHARE)
        held_out, ranked = ranked[:count], ranked[count:]
        if split == wanted.split:
            return held_out, ranked
    raise AssertionError(wanted.split)


def _checked(data: TaskData, split: Split) -> TaskData:
    if len(data.train) < MIN_TRAINING or len(data.evaluation) < MIN_EVALUATION:
        raise FtbenchError(
            f"{data.origin} holds too little: {len(data.train)} training examples (from {MIN_TRAINING}) and "
            f"{len(data.evaluation)} {split} prompts (from {MIN_EVALUATION}); add examples"
        )
    if len(data.ordinary) < MIN_TRAINING or len(data.held_out_ordinary) < MIN_EVALUATION:
        raise FtbenchError(
            f"{data.origin}: the judge learns from ordinary replies, and only {len(data.ordinary)} training and "
            f"{len(data.held_out_ordinary)} held-out examples have one; give more lines a 'rejected' completion"
        )
    return data
