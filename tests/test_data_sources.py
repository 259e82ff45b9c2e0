"""Files and the hub: what is read, what is left out, and how bad input is named."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbench.data.conversations import Selection, select_conversations
from ftbench.data.lines import read_rows
from ftbench.data.pairs import Pair, read_pairs
from ftbench.data.sources import OASST1, OASST1_REVISION, Source, read_source
from ftbench.errors import UsageError
from one_line import one_line, one_line_at_most

Message = dict[str, Any]


def message(name: str, parent: str | None = None, **changes: Any) -> Message:
    """A message as OASST1's rows have it."""
    return {
        "message_id": name,
        "parent_id": parent,
        "text": f"text of {name}",
        "role": "assistant" if parent else "prompter",
        "lang": "en",
        "review_result": True,
        "deleted": False,
        "rank": None,
        "tree_state": "ready_for_export",
        "labels": {"name": ["spam", "quality"], "value": [0.0, 0.75], "count": [3, 3]},
        **changes,
    }


def labels(**values: float) -> dict[str, Any]:
    return {"name": list(values), "value": list(values.values()), "count": [3] * len(values)}


def as_tree(root: Message, messages: Sequence[Message]) -> dict[str, Any]:
    """The tree export of a root message and the messages below it."""

    def node(row: Message) -> Message:
        votes = zip(row["labels"]["name"], row["labels"]["value"], row["labels"]["count"], strict=True)
        return {
            **{key: row[key] for key in row if key not in ("tree_state", "parent_id")},
            "labels": {name: {"value": value, "count": count} for name, value, count in votes},
            "replies": [node(reply) for reply in messages if reply["parent_id"] == row["message_id"]],
        }

    return {"message_tree_id": root["message_id"], "tree_state": root["tree_state"], "prompt": node(root)}


CORPUS = [
    message("p1"),
    message("a1", "p1", rank=1),
    message("a2", "p1", rank=0, labels=labels(**{"topic:trains": 1.0})),
    message("a3", "p1", text="spam", labels=labels(spam=0.5)),
    message("p2", "a1", role="prompter"),
    message("a4", "p2"),
    message("p3"),
    message("a5", "p3", deleted=True),
    message("p4", lang="es"),
    message("a6", "p4", lang="es"),
    message("p5", tree_state="prompt_lottery_waiting"),
    message("a7", "p5", tree_state="prompt_lottery_waiting"),
    message("p6"),
    message("a8", "p6"),
    message("a9", "p6", review_result=False),
]


def write(path: Path, rows: Sequence[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def select(rows: Sequence[Message], lang: str = "en") -> Selection:
    return select_conversations([(f"row {number}", dict(row)) for number, row in enumerate(rows, start=1)], lang)


def pairs_of(path: Path) -> tuple[Pair, ...]:
    content = read_source(str(path), "en").content
    assert isinstance(content, tuple)
    return content


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_a_file_is_read_with_the_place_of_every_row(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"a": 1}, {"b": "ü"}])
    assert list(read_rows(path)) == [(f"{path}, line 1", {"a": 1}), (f"{path}, line 2", {"b": "ü"})]


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert [(where[-6:], row) for where, row in read_rows(path)] == [("line 1", {"a": 1}), ("line 4", {"a": 2})]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "a", ', "not valid JSON"),
        (b"[1]", "a JSON object is needed, found list"),
        (b'"text"', "found str"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": "\\ud83d"}', "not UTF-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too long a number"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "whole \\ud83d\\ude00"}\n' + line + b"\n")
    with one_line(f"{path}, line 2", said):
        list(read_rows(path))


def test_a_gzip_file_cut_short_is_named_with_the_last_good_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl.gz", [{"number": number} for number in range(20_000)])
    path.write_bytes(path.read_bytes()[:20_000])
    with one_line(str(path), "not a whole gzip file (after line ", "fetch it again"):
        list(read_rows(path))


def test_a_file_that_only_claims_to_be_gzip_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_text('{"a": 1}\n')
    with one_line(str(path), "not a whole gzip file (after line 0)"):
        list(read_rows(path))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with one_line("rows.jsonl: empty file"):
        read_source("rows.jsonl", "en")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "folder/rows"])
def test_a_missing_file_is_named(name: str) -> None:
    with one_line(f"no such data file: {name}", kind=UsageError):
        read_source(name, "en")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with one_line("no such data 'sampel'", "did you mean 'sample'", ".jsonl", kind=UsageError):
        read_source("sampel", "en")


def test_only_root_prompts_with_usable_replies_are_kept_best_rank_first() -> None:
    found = select(CORPUS)
    assert [(c.prompt, [reply.text for reply in c.replies]) for c in found.conversations] == [
        ("text of p1", ["text of a2", "text of a1"]),
        ("text of p6", ["text of a8"]),
    ]
    assert [reply.topics for reply in found.conversations[0].replies] == [{"trains"}, set()]


def test_what_is_left_out_is_counted_by_reason() -> None:
    assert select(CORPUS).left_out == {
        "unsuitable": 1,
        "deleted": 1,
        "in another language": 2,
        "in unfinished trees": 2,
        "unreviewed or turned down": 1,
    }
    assert [conversation.prompt for conversation in select(CORPUS, "es").conversations] == ["text of p4"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"deleted": True}, "deleted"),
        ({"review_result": None}, "unreviewed or turned down"),
        ({"text": " \n"}, "empty"),
        *(
            ({"labels": labels(**{name: 0.5})}, "unsuitable")
            for name in ("spam", "lang_mismatch", "pii", "not_appropriate", "hate_speech", "sexual_content")
        ),
    ],
)
def test_an_unfit_reply_is_left_out(change: Message, reason: str) -> None:
    found = select([message("p"), message("good", "p"), message("bad", "p", **change)])
    assert [reply.text for reply in found.conversations[0].replies] == ["text of good"]
    assert found.left_out == {reason: 1}


def test_a_label_below_one_half_leaves_nothing_out() -> None:
    assert not select([message("p"), message("a", "p", labels=labels(spam=0.49, pii=0.0))]).left_out


def test_trees_and_rows_of_the_same_content_give_the_same(tmp_path: Path) -> None:
    roots = [row for row in CORPUS if row["parent_id"] is None]
    trees = [as_tree(root, CORPUS) for root in roots]
    from_rows = read_source(str(write(tmp_path / "rows.jsonl", CORPUS)), "en")
    from_trees = read_source(str(write(tmp_path / "trees.jsonl.gz", trees)), "en")
    assert from_trees.content == from_rows.content
    assert from_trees.origin == "trees.jsonl.gz"


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    backwards = select(CORPUS[::-1])
    assert set(backwards.conversations) == set(select(CORPUS).conversations)
    assert backwards.left_out == select(CORPUS).left_out


def test_an_empty_selection_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [message("p", deleted=True), message("a", "p", lang="de")])
    with one_line(str(path), "none of 2 messages", "'en'", "1 deleted", "1 in another language", "--lang"):
        read_source(str(path), "en")


def test_prompts_without_replies_are_an_empty_selection() -> None:
    with one_line("none of 1 messages", "no root prompt replied to"):
        select([message("p")])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"message_id": None}, "'message_id' is missing"),
        ({"text": 5}, "'text' is missing or not text"),
        ({"role": None}, "'role' is missing"),
        ({"role": "system\n"}, r"role 'system\n' is neither"),
        ({"parent_id": 7}, "'parent_id'"),
        ({"rank": "first"}, "'rank'"),
        ({"labels": "spam"}, "'labels'"),
        ({"labels": {"name": ["spam"], "value": []}}, "'labels'"),
        ({"labels": {"name": ["spam"]}}, "'labels'"),
        ({"labels": {"spam": {"value": None}}}, "'labels'"),
    ],
)
def test_a_message_that_breaks_the_schema_is_named_by_line(tmp_path: Path, change: Message, said: str) -> None:
    path = write(tmp_path / "rows.jsonl", [message("p"), message("a", "p", **change)])
    with one_line(f"{path}, line 2", said):
        read_source(str(path), "en")


@pytest.mark.parametrize("replies", [["text"], 5, {"a": {}}, [{"text": "no id", "role": "assistant"}]])
def test_a_tree_that_breaks_the_schema_is_named_by_line(tmp_path: Path, replies: Any) -> None:
    tree = as_tree(message("p"), [])
    tree["prompt"]["replies"] = replies
    path = write(tmp_path / "trees.jsonl", [as_tree(message("q"), []), tree])
    with one_line(f"{path}, line 2"):
        read_source(str(path), "en")


def test_own_pairs_are_read_with_and_without_a_rejected_completion(tmp_path: Path) -> None:
    rows = [{"prompt": " a ", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": None}]
    path = write(tmp_path / "pairs.jsonl", rows)
    assert pairs_of(path) == (Pair("a", "b", "c"), Pair("d", "e", None))
    assert read_source(str(path), "en").origin == "pairs.jsonl"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a"}, "'chosen' is missing"),
        ({"chosen": "a", "rejected": "b"}, "'prompt' is missing"),
        ({"prompt": None, "chosen": "a"}, "'prompt' is missing"),
        ({"prompt": "a", "chosen": "b", "rejcted": "c"}, "no such field 'rejcted'; did you mean 'rejected'"),
        ({"promt": "a", "chosen": "b"}, "no such field 'promt'; did you mean 'prompt'"),
        ({"prompt": "a", "chosen": "b", "x\ny": "c"}, r"no such field 'x\ny'"),
        ({"prompt": " ", "chosen": "b"}, "'prompt' is empty"),
        ({"prompt": "a", "chosen": ""}, "'chosen' is empty"),
        ({"prompt": "a", "chosen": ["b"]}, "'chosen' is missing or not text"),
        ({"prompt": "a", "chosen": "b", "rejected": 1}, "'rejected' is missing or not text"),
        ({"prompt": "a", "chosen": "b ", "rejected": " b"}, "'chosen' and 'rejected' are the same"),
    ],
)
@pytest.mark.parametrize("line", [1, 2])
def test_a_bad_pair_is_named_by_line(tmp_path: Path, row: Message, said: str, line: int) -> None:
    good = {"prompt": "p", "chosen": "c", "rejected": "r"}
    path = write(tmp_path / "pairs.jsonl", [*[good] * (line - 1), row])
    with one_line(f"{path}, line {line}", said):
        read_source(str(path), "en")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("p")
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*message(""), "name", "value"]), inner)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.dictionaries(st.sampled_from([*message(""), "prompt", "replies"]), VALUES), min_size=1, max_size=3))
def test_no_json_object_makes_reading_messages_fail_otherwise_than_in_one_line(rows: list[Message]) -> None:
    whole = [message("p"), *({**message("a", "p"), **row} for row in rows)]
    for candidate in (rows, whole):
        with one_line_at_most():
            select(candidate)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(["prompt", "chosen", "rejected"]) | st.text(max_size=5), VALUES))
def test_no_json_object_makes_reading_pairs_fail_otherwise_than_in_one_line(row: Message) -> None:
    with one_line_at_most():
        read_pairs([("line 1", row)])


def test_an_unreachable_hub_is_one_line_that_names_the_offline_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", fail)
    with one_line("'oasst1'", "Hugging Face hub", "ConnectionError", "--data sample"):
        read_source("oasst1", "en")


def test_oasst1_is_read_from_both_splits_at_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*names: str, **options: Any) -> Any:
        asked.append((names, options))
        splits = {"train": CORPUS[:6], "validation": CORPUS[6:]}
        return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})

    monkeypatch.setattr("datasets.load_dataset", load)
    assert read_source("oasst1", "en") == Source(select(CORPUS), f"{OASST1}@{OASST1_REVISION}")
    assert asked == [((OASST1,), {"revision": OASST1_REVISION})]
    assert len(OASST1_REVISION) == 40
