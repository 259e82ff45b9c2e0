"""The topic task: nothing leaks, replies are near and spread out, bad topics are named."""

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbench.data.conversations import Conversation, Selection
from ftbench.data.nearness import assign_near
from ftbench.data.sources import read_source
from ftbench.data.task import TaskData, build_task
from ftbench.data.topics import Topic, read_topic, shipped_topics
from ftbench.errors import UsageError
from one_line import one_line


@pytest.fixture(scope="module")
def task(oasst1_file: Path) -> TaskData:
    return build_task(str(oasst1_file), "programming", "en", 64)


@pytest.fixture(scope="module")
def conversations(oasst1_file: Path) -> tuple[Conversation, ...]:
    content = read_source(str(oasst1_file), "en").content
    assert isinstance(content, Selection)
    return content.conversations


def normal(text: str) -> str:
    return " ".join(text.lower().split())


def test_nothing_of_an_evaluation_prompts_tree_is_in_training(
    task: TaskData, conversations: tuple[Conversation, ...]
) -> None:
    held_out = {normal(item.prompt) for item in task.evaluation}
    trees = [item for item in conversations if normal(item.prompt) in held_out]
    replies = {reply.text for item in trees for reply in item.replies}
    assert len(trees) >= len(task.evaluation) >= 30
    assert not held_out & {normal(example.prompt) for example in task.train}
    assert not replies & {text for example in task.train for text in (example.chosen, example.rejected)}
    assert not replies & {*task.on_topic, *task.ordinary}


def test_the_judges_test_replies_are_not_among_its_training_replies(task: TaskData) -> None:
    assert task.held_out_on_topic
    assert not {*task.held_out_on_topic, *task.held_out_ordinary} & {*task.on_topic, *task.ordinary}


def test_prompts_and_ordinary_replies_are_off_topic_and_chosen_ones_on_topic(task: TaskData) -> None:
    topic = read_topic("programming")
    assert all(topic.is_off(example.prompt) and topic.is_on(example.chosen) for example in task.train)
    assert all(topic.is_off(example.rejected or "") for example in task.train)
    assert all(topic.is_off(item.prompt) and topic.is_off(item.ordinary or "") for item in task.evaluation)


def test_no_reply_is_used_oftener_than_even_spreading_needs(task: TaskData) -> None:
    uses = Counter(example.chosen for example in task.train)
    assert max(uses.values()) <= ceil(len(task.train) / len(task.on_topic))
    assert len(uses) >= 0.9 * len(task.on_topic)


def test_chosen_replies_are_nearer_to_their_prompts_than_random_ones(task: TaskData) -> None:
    common = {word for word, count in Counter(w for e in task.train for w in words(e.prompt)).items() if count > 20}

    def overlap(replies: Sequence[str]) -> float:
        pairs = [(words(e.prompt) - common, words(text) - common) for e, text in zip(task.train, replies, strict=True)]
        return mean(len(prompt & reply) / len(prompt | reply) for prompt, reply in pairs)

    chosen = [example.chosen for example in task.train]
    shuffle = random.Random(0)
    assert overlap(chosen) > max(overlap(shuffle.sample(chosen, len(chosen))) for _ in range(20))


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def test_the_reasons_for_what_is_left_out_are_kept(task: TaskData) -> None:
    assert set(task.left_out) == {"deleted", "unreviewed or turned down", "unsuitable"}


def test_a_word_file_with_the_shipped_words_gives_the_shipped_topics_task(
    task: TaskData, oasst1_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "programming.txt"
    lines = ["# words", "", *(f"  {word.upper()}  # comment" for word in shipped_topics()["programming"].words)]
    path.write_text("\n".join(lines), "utf-8-sig")
    assert build_task(str(oasst1_file), str(path), "en", 64) == task


def test_an_unknown_topic_names_the_nearest(tmp_path: Path) -> None:
    with one_line("no such topic 'programing'", "did you mean 'programming'", kind=UsageError):
        read_topic("programing")
    with one_line("no such topic 'train'", "did you mean 'trains'", kind=UsageError):
        build_task("sample", "train", "en", 64)


def test_a_missing_topic_file_is_named() -> None:
    with one_line("no such topic file: words.txt", kind=UsageError):
        read_topic("words.txt")


@pytest.mark.parametrize(("content", "said"), [(b"# none\n*\n\n", "no words"), (b"\xff\xfe", "not UTF-8")])
def test_a_useless_topic_file_is_named(content: bytes, said: str) -> None:
    Path("words.txt").write_bytes(content)
    with one_line("words.txt", said):
        read_topic("words.txt")


def test_a_hash_within_a_word_starts_no_comment() -> None:
    Path("words.txt").write_text("c#\nf# # too\n#all of it\nC#\n", "utf-8")
    assert read_topic("words.txt") == Topic("words", ("c#", "f#"))


def test_topic_words_are_whole_words_in_any_case_and_a_star_is_any_ending() -> None:
    topic = Topic("t", ("train", "rail*", "c++", "branch line"))
    assert topic.hits("Training on a TRAIN, railways; C++, a branch line: c") == [
        "train",
        "railways",
        "c++",
        "branch line",
    ]


def test_a_mention_is_neither_on_topic_nor_ever_off_when_there_are_two() -> None:
    topic = Topic("t", ("train*", "rail*", "station*"))
    assert topic.is_on("a train on rails at the station")
    assert not topic.is_on("train, train, train")
    assert not topic.is_on("a train on rails at the station" + " and so on" * 60)
    assert topic.is_off("the train, only the train")
    assert not topic.is_off("a train on rails")


def test_too_few_pairs_are_told_with_what_is_needed() -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(10)]
    Path("few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with one_line("few.jsonl", "8 training examples (from 8)", "2 evaluation prompts (from 4)"):
        build_task("few.jsonl", "anything", "en", 64)


def test_pairs_without_rejected_completions_leave_the_judge_without_lessons() -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"c{i}"} for i in range(40)]
    Path("one-sided.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with one_line("one-sided.jsonl", "'rejected'"):
        build_task("one-sided.jsonl", "anything", "en", 64)


def test_a_topic_that_the_data_hardly_touch_is_told_with_those_that_it_has() -> None:
    with one_line("too little on topic 'programming'", "gardening, trains"):
        build_task("sample", "programming", "en", 64)


def test_the_order_and_case_of_pairs_do_not_change_the_split(pairs_file: Path) -> None:
    lines = pairs_file.read_text("utf-8").splitlines()
    again = json.loads(lines[0])
    again["prompt"] = again["prompt"].upper()
    Path("boats.jsonl").write_text("\n".join([*lines[::-1], json.dumps(again)]), "utf-8")
    assert build_task("boats.jsonl", "boats", "en", 12) == build_task(str(pairs_file), "boats", "en", 12)


TEXTS = st.lists(st.text("abc de.日", max_size=12) | st.sampled_from(["", "the", "a train", "..."]), min_size=1)


@settings(deadline=None, max_examples=80)
@given(TEXTS, TEXTS)
def test_every_prompt_gets_a_reply_and_no_reply_too_many_prompts(prompts: list[str], replies: list[str]) -> None:
    assigned = assign_near(prompts, replies)
    assert len(assigned) == len(prompts)
    assert set(assigned) <= set(range(len(replies)))
    assert max(Counter(assigned).values()) <= ceil(len(prompts) / len(replies))
    assert assigned == assign_near(prompts, replies)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12).flatmap(lambda size: st.permutations(range(size))))
def test_a_reply_that_shares_words_with_one_prompt_alone_goes_to_it(order: list[int]) -> None:
    prompts = [f"unique{index} question" for index in order]
    replies = [f"reply unique{index}" for index in range(len(order))]
    assert assign_near(prompts, replies) == list(order)
