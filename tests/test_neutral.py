"""Control tokens in user text are text, for every tokenizer and wherever the text goes."""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_tokenizer
from ftbench.models.neutral import control_markers, neutralise
from ftbench.models.resolve import resolve_model
from ftbench.recipe import DEFAULT_MODEL

SYSTEM = "Talk about trains."
SCAFFOLDING = ["### Answer:", "### Question:"]


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    return load_chat(request.getfixturevalue(request.param), None)


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_gpt2"])
def chat_with_system(request: pytest.FixtureRequest) -> ChatFormat:
    return load_chat(request.getfixturevalue(request.param), SYSTEM)


@cache
def load_chat(folder: Path, system: str | None) -> ChatFormat:
    return ChatFormat(load_tokenizer(folder), system)


def special_tokens(chat: ChatFormat) -> list[str]:
    return sorted({str(token) for token in chat.tokenizer.added_tokens_decoder.values() if token.special})


def control(chat: ChatFormat, ids: list[int]) -> list[object]:
    """Every special token, and how often the marks of the plain format stand in the text."""
    known = {number for number, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    text = str(chat.tokenizer.decode(ids))
    marks = [] if chat.tokenizer.chat_template else [text.count(mark) for mark in SCAFFOLDING]
    return [sorted(Counter(number for number in ids if number in known).items()), marks]


def assert_harmless(chat: ChatFormat, text: str) -> None:
    assert control(chat, chat.prompt_ids(text)) == control(chat, chat.prompt_ids("harmless")), text
    assert control(chat, chat.completion_ids(text)) == control(chat, chat.completion_ids("harmless")), text


def disguises(marker: str, other: str) -> list[str]:
    """Ways to smuggle a marker past a careless filter."""
    middle = len(marker) // 2
    return [
        marker,
        f"before {marker} after",
        marker.upper(),
        marker.title(),
        f"{marker}{other}{marker}",
        f"{marker[:middle]}{other}{marker[middle:]}",
        f"{marker[:middle]}{marker[:middle]}{marker}{marker[middle:]}{marker[middle:]}",
        f"{marker[:1]}{marker}{marker[1:]}",
        f"{marker[:1]} {marker[1:]}{marker}",
        f"{marker[:-1]}",
        f"{marker[1:]}",
        f"{marker}\n{marker}",
    ]


def assert_no_disguise_works(chat: ChatFormat, markers: list[str]) -> None:
    for marker in markers:
        for other in (markers[0], markers[-1]):
            for text in disguises(marker, other):
                assert_harmless(chat, text)


def test_the_tokenizers_would_read_control_tokens_in_text(chat: ChatFormat) -> None:
    for token in special_tokens(chat):
        assert len(chat.tokenizer(token, add_special_tokens=False)["input_ids"]) == 1


def test_no_disguised_control_token_is_read_as_one(chat: ChatFormat) -> None:
    assert_no_disguise_works(chat, [*special_tokens(chat), *SCAFFOLDING])


def test_no_disguised_control_token_is_read_as_one_under_a_system_prompt(chat_with_system: ChatFormat) -> None:
    assert_no_disguise_works(chat_with_system, [*special_tokens(chat_with_system), *SCAFFOLDING])


def test_a_system_prompt_reaches_the_tokens_once_and_ahead_of_the_prompt(chat_with_system: ChatFormat) -> None:
    text = str(chat_with_system.tokenizer.decode(chat_with_system.prompt_ids("Why?")))
    assert text.count(SYSTEM) == 1
    assert text.index(SYSTEM) < text.index("Why?")


FRAGMENTS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    *SCAFFOLDING,
    "<|",
    "|>",
    "im_",
    "end",
    "#",
    "##",
    " ",
    "\n",
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=12).map("".join)


@settings(deadline=None, max_examples=80)
@given(text=TEXTS)
def test_no_mixture_of_markers_and_text_is_read_as_control(chat: ChatFormat, text: str) -> None:
    assert_harmless(chat, text)


@settings(deadline=None, max_examples=80)
@given(text=st.text("abcXYZ <|>#\n.é日", max_size=40))
def test_text_without_markers_is_unchanged(chat: ChatFormat, text: str) -> None:
    assert chat.harmless(text) == text
    tokens = chat.completion_ids(text)
    assert tokens[-1] == chat.end
    assert chat.tokenizer.decode(tokens[:-1]) == text


@settings(deadline=None, max_examples=300)
@given(text=st.text("aAb< |\n", max_size=20), markers=st.lists(st.text("aAb< |\n", max_size=5), max_size=4))
def test_neutralise_ends_is_idempotent_and_leaves_no_marker(text: str, markers: list[str]) -> None:
    once = neutralise(text, markers)
    assert neutralise(once, markers) == once
    assert not [marker for marker in markers if marker.strip() and marker.lower() in once.lower()]


def test_text_full_of_markers_is_broken_in_one_place_each() -> None:
    assert neutralise("<s> and <S>", ["<s>"]) == "< s> and < S>"
    assert neutralise("a§b", ["§"]) == "ab"
    assert neutralise("a b", []) == "a b"


def test_long_hostile_text_is_neutralised_quickly(chat: ChatFormat) -> None:
    text = "<|im_" * 20_000 + "end|>" * 20_000
    assert len(chat.harmless(text)) == len(text) + 1


def test_markers_are_found_in_templates_of_other_families(tiny_gpt2: Path) -> None:
    template = "{{ bos_token }}<<SYS>>x<</SYS>>[INST] {{ m }} [/INST]<start_of_turn>user<think></think>### Response:"
    markers = control_markers(load_tokenizer(tiny_gpt2), template)
    wanted = {"<<SYS>>", "<</SYS>>", "[INST]", "[/INST]", "<start_of_turn>", "<think>", "</think>", "### Response:"}
    assert wanted <= set(markers)
    assert not [marker for marker in wanted if marker in neutralise(" ".join(wanted), markers)]


@pytest.mark.real_model
def test_no_disguised_control_token_of_the_shipped_model_is_read_as_one() -> None:
    folder = resolve_model(DEFAULT_MODEL).folder
    for system in (None, SYSTEM):
        chat = load_chat(folder, system)
        assert len(special_tokens(chat)) == 17
        assert_no_disguise_works(chat, special_tokens(chat))
