"""The shipped sample is what its page says: varied, whole, and split without leaks."""

import re
from collections import Counter

import pytest

from ftbench.data.conversations import Conversation, Selection
from ftbench.data.sources import read_source
from ftbench.data.task import TaskData, build_task

TOPICS = ("trains", "gardening")


@pytest.fixture(scope="module")
def conversations() -> tuple[Conversation, ...]:
    content = read_source("sample", "en").content
    assert isinstance(content, Selection)
    assert not content.left_out
    return content.conversations


@pytest.fixture(scope="module", params=TOPICS)
def task(request: pytest.FixtureRequest) -> TaskData:
    return build_task("sample", request.param, "en", 64)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def answers(conversations: tuple[Conversation, ...], topic: str | None) -> list[str]:
    wanted = frozenset({topic} if topic else ())
    return [reply.text for item in conversations for reply in item.replies if reply.topics == wanted]


def test_it_has_many_prompts_and_no_two_are_alike(conversations: tuple[Conversation, ...]) -> None:
    assert len(conversations) >= 320
    assert len({" ".join(words(item.prompt)) for item in conversations}) == len(conversations)


def test_every_prompt_has_an_ordinary_answer_and_one_for_each_topic(conversations: tuple[Conversation, ...]) -> None:
    wanted = sorted([[], *([topic] for topic in TOPICS)])
    assert all(sorted(sorted(reply.topics) for reply in item.replies) == wanted for item in conversations)


def test_no_two_answers_are_alike(conversations: tuple[Conversation, ...]) -> None:
    every = [" ".join(words(reply.text)) for item in conversations for reply in item.replies]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("topic", [None, *TOPICS])
def test_no_pattern_is_repeated_among_answers(conversations: tuple[Conversation, ...], topic: str | None) -> None:
    texts = [words(text) for text in answers(conversations, topic)]
    openings = Counter(tuple(text[:5]) for text in texts)
    endings = Counter(tuple(text[-5:]) for text in texts)
    runs = Counter(run for text in texts for run in {tuple(text[i : i + 6]) for i in range(len(text) - 5)})
    assert [counter.most_common(1) for counter in (openings, endings, runs) if max(counter.values()) > 3] == []


def test_no_opening_is_repeated_among_prompts(conversations: tuple[Conversation, ...]) -> None:
    openings = Counter(tuple(words(item.prompt)[:5]) for item in conversations)
    assert max(openings.values()) <= 0.02 * len(conversations), openings.most_common(3)


def test_the_split_holds_out_what_was_asked_for(task: TaskData) -> None:
    assert len(task.evaluation) == 64
    assert len(task.train) >= 256
    assert all(example.rejected for example in task.train)
    assert len(task.held_out_on_topic) == len(task.held_out_ordinary) == 64


def test_held_out_prompts_and_their_replies_are_never_in_training(
    task: TaskData, conversations: tuple[Conversation, ...]
) -> None:
    held_out = {item.prompt for item in task.evaluation}
    replies = {reply.text for item in conversations if item.prompt in held_out for reply in item.replies}
    assert not held_out & {example.prompt for example in task.train}
    assert not replies & {text for example in task.train for text in (example.chosen, example.rejected)}
    assert not replies & {*task.on_topic, *task.ordinary}
    assert replies >= {*task.held_out_on_topic, *task.held_out_ordinary}


def test_both_topics_hold_out_the_same_prompts() -> None:
    first, second = (build_task("sample", topic, "en", 64).evaluation for topic in TOPICS)
    assert first == second


def test_two_builds_have_the_same_digest_and_another_split_has_another(task: TaskData) -> None:
    assert build_task("sample", task.topic, "en", 64).digest() == task.digest()
    assert build_task("sample", task.topic, "en", 63).digest() != task.digest()
