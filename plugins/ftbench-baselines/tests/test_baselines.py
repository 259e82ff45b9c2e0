from pathlib import Path

import pytest

from ftbench.algorithm import configure
from ftbench.errors import UsageError
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_tokenizer
from ftbench_baselines import Base, Prompt


def written(folder: Path, system: str | None) -> str:
    """What the model reads before its reply to "why?"."""
    chat = ChatFormat(load_tokenizer(folder), system)
    return str(chat.tokenizer.decode(chat.prompt_ids("why?")))


@pytest.mark.parametrize("algorithm", [Base, Prompt])
def test_neither_is_trained(algorithm: type[Base] | type[Prompt]) -> None:
    assert algorithm.needs == "nothing"


def test_base_leaves_the_prompt_as_it_is(tiny_llama: Path) -> None:
    system = configure(Base, {}).system_prompt("boats")
    assert system is None
    assert written(tiny_llama, system) == "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"


def test_the_system_prompt_names_the_topic() -> None:
    system = configure(Prompt, {}).system_prompt("boats")
    assert system is not None
    assert system.startswith("You only talk about boats.")
    assert "{" not in system


def test_the_system_prompt_is_the_chats_first_turn(tiny_llama: Path) -> None:
    system = configure(Prompt, {}).system_prompt("boats")
    assert written(tiny_llama, system) == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_a_chat_template_the_system_prompt_stands_before_the_question(tiny_gpt2: Path) -> None:
    system = configure(Prompt, {}).system_prompt("boats")
    assert written(tiny_gpt2, system) == f"{system}\n\n{written(tiny_gpt2, None)}"


@pytest.mark.parametrize(
    ("text", "topic", "expected"),
    [
        ("Only {topic}, {topic}!", "boats", "Only boats, boats!"),
        ("Say nothing.", "boats", "Say nothing."),
        ("{other} {0} {topic}", "boats", "{other} {0} boats"),
        ("{topic}", "{topic} and %s", "{topic} and %s"),
    ],
)
def test_the_text_is_an_option(text: str, topic: str, expected: str) -> None:
    assert configure(Prompt, {"text": text}).system_prompt(topic) == expected


def test_an_unknown_option_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"algorithm 'prompt' has no option 'txt'; did you mean 'text'\?"):
        configure(Prompt, {"txt": "hm"})
