import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from ftbench.data.task import EvaluationPrompt
from ftbench.evaluation import evaluate, generation
from ftbench.evaluation.cache import cache_bytes_per_token
from ftbench.evaluation.generation import generate_replies
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_model, load_tokenizer
from ftbench.training.logprobs import sequence_logprobs

LIMIT = 24


class TokenChat(ChatFormat):
    """Gives the reply's tokens as its text, so that replies are compared token for token."""

    def reply_text(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def chat(folder: Path) -> ChatFormat:
    return TokenChat(load_tokenizer(folder))


@pytest.fixture
def model(folder: Path, chat: ChatFormat) -> PreTrainedModel:
    """A tiny model that says many things, and ends some of its replies."""
    loaded = load_model(folder, torch.device("cpu")).double()
    with torch.no_grad():
        for parameter in loaded.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
        head = torch.nn.Linear(32, 259, dtype=torch.float64)
        torch.manual_seed(1)
        torch.nn.init.normal_(head.weight)
        torch.nn.init.zeros_(head.bias)
        head.bias[chat.end] = 8.0 if loaded.config.model_type == "llama" else 14.0  # so that some replies end
    loaded.lm_head = head
    return loaded


def some_prompts() -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices("abcdefgh ?", k=draw.randint(1, 60))) for _ in range(15)]


def greedy(model: PreTrainedModel, chat: ChatFormat, prompt: str, limit: int) -> list[int]:
    """The reply of one prompt by itself: no padding, no cache, no generate()."""
    ids = chat.prompt_ids(prompt)
    reply: list[int] = []
    with torch.inference_mode():
        while len(reply) < limit and (not reply or reply[-1] != chat.end):
            logits = model(input_ids=torch.tensor([ids + reply]), use_cache=False).logits
            reply.append(int(logits[0, -1].argmax()))
    return reply


def replies_of(
    model: PreTrainedModel, chat: ChatFormat, prompts: list[str], batch_size: int, limit: int = LIMIT
) -> list[list[int]]:
    replies = generate_replies(model, chat, prompts, limit, batch_size, lambda _: None)
    for reply in replies:
        tokens = [int(token) for token in reply.text.split()]
        assert reply.tokens == len(tokens)
        assert reply.ended == (chat.end in tokens)
    return [[int(token) for token in reply.text.split()] for reply in replies]


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_batches_say_what_each_prompt_alone_does(model: PreTrainedModel, chat: ChatFormat, batch_size: int) -> None:
    prompts = some_prompts()
    expected = [greedy(model, chat, prompt, LIMIT) for prompt in prompts]
    assert len({tuple(reply) for reply in expected}) > 10  # or the comparison would say little
    assert sum(len(set(reply)) > 3 for reply in expected) > 5
    assert replies_of(model, chat, prompts, batch_size) == expected


def test_a_reply_stops_at_the_end_token(model: PreTrainedModel, chat: ChatFormat) -> None:
    replies = replies_of(model, chat, some_prompts(), 32)
    ended = [reply for reply in replies if chat.end in reply]
    assert 0 < len(ended) < len(replies)
    assert all(reply.index(chat.end) == len(reply) - 1 for reply in ended)
    assert all(len(reply) == LIMIT for reply in replies if chat.end not in reply)


@pytest.mark.parametrize("turn", [1, -1])
def test_the_order_is_that_of_the_prompts_whatever_their_lengths(
    model: PreTrainedModel, chat: ChatFormat, turn: int
) -> None:
    prompts = sorted(some_prompts(), key=len)[::turn]
    prompts = [*prompts, prompts[3]]
    replies = replies_of(model, chat, prompts, 4)
    assert replies == [replies_of(model, chat, [prompt], 1)[0] for prompt in prompts]


@pytest.mark.parametrize("limit", [1, 5])
def test_no_reply_is_longer_than_it_may_be(model: PreTrainedModel, chat: ChatFormat, limit: int) -> None:
    prompts = some_prompts()
    replies = replies_of(model, chat, prompts, 8, limit)
    assert replies == [reply[:limit] for reply in replies_of(model, chat, prompts, 8)]
    assert max(map(len, replies)) == limit


@pytest.mark.parametrize(
    "wish",
    [
        {"do_sample": True, "temperature": 5.0, "top_k": 50, "top_p": 0.9},
        {"repetition_penalty": 3.0},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 20},
        {"suppress_tokens": list(range(3, 200))},
        {"num_beams": 3},
        {"max_length": 5},
        {"eos_token_id": list(range(3, 200))},
    ],
    ids=lambda wish: next(iter(wish)),
)
def test_replies_are_plainly_greedy_whatever_the_models_own_generation_config_asks_for(
    model: PreTrainedModel, chat: ChatFormat, wish: dict[str, object]
) -> None:
    prompts = some_prompts()
    plain = replies_of(model, chat, prompts, 8)
    asked = GenerationConfig(**wish)
    model.generation_config = asked
    assert replies_of(model, chat, prompts, 8) == plain
    assert model.generation_config is asked


def test_progress_counts_finished_replies(model: PreTrainedModel, chat: ChatFormat) -> None:
    seen: list[int] = []
    generate_replies(model, chat, some_prompts(), 2, 4, seen.append)
    assert seen == [4, 8, 12, 15]


def test_the_text_of_a_reply_has_no_control_tokens(tiny_llama: Path) -> None:
    chat = ChatFormat(load_tokenizer(tiny_llama))
    model = load_model(tiny_llama, torch.device("cpu"))
    torch.nn.init.zeros_(
        model.get_input_embeddings().get_parameter("weight")
    )  # all tokens alike: the first special one, always
    (reply,) = generate_replies(model, chat, ["why?"], 4, 1, lambda _: None)
    assert (reply.text, reply.tokens, reply.ended) == ("", 4, False)


def test_without_padding_a_batch_holds_prompts_of_one_length(
    model: PreTrainedModel, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftbench.evaluation import generation

    batches: list[list[list[int]]] = []
    whole = generation._generate

    def spy(model: PreTrainedModel, chat: ChatFormat, rows: list[list[int]], limit: int) -> list[list[int]]:
        batches.append(rows)
        return whole(model, chat, rows, limit)

    monkeypatch.setattr(generation, "_generate", spy)
    prompts = [*some_prompts(), *some_prompts()]
    padded = generate_replies(model, chat, prompts, 4, 3, lambda _: None)
    assert generate_replies(model, chat, prompts, 4, 3, lambda _: None, padded=False) == padded
    assert all(len({len(row) for row in rows}) == 1 for rows in batches)
    assert max(len(rows) for rows in batches) in (2, 3)


def test_the_cache_is_measured_of_its_tensors(tiny_llama: Path, tiny_gpt2: Path) -> None:
    llama, gpt2 = (load_model(each, torch.device("cpu")) for each in (tiny_llama, tiny_gpt2))
    assert cache_bytes_per_token(llama) == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, their size, bytes
    size = gpt2.config.hidden_size * gpt2.config.num_hidden_layers
    assert cache_bytes_per_token(gpt2.bfloat16()) == 2 * size * 2


def test_where_memory_runs_out_replies_are_written_and_scored_in_halves(
    model: PreTrainedModel, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = some_prompts()[:5]
    items = [EvaluationPrompt(prompt, prompt[::-1] if place else None) for place, prompt in enumerate(prompts)]
    settings = evaluate.EvaluationSettings(8, 5, 200, 10**6)

    def answer() -> tuple[object, object]:
        replies = generate_replies(model, chat, prompts, 8, 5, lambda _: None)
        return replies, evaluate._ordinary_losses(model, chat, items, settings)

    together = answer()
    refused: list[int] = []

    def alone(plain: Callable[..., Any], place: int) -> Any:
        def work(*given: Any, **more: Any) -> Any:
            if len(given[place]) > 1:
                refused.append(len(given[place]))
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
            return plain(*given, **more)

        return work

    monkeypatch.setattr(generation, "_decode", alone(generation._decode, 2))
    monkeypatch.setattr(evaluate, "sequence_logprobs", alone(sequence_logprobs, 1))
    replies, losses = answer()
    assert refused == [5, 2, 3, 2, 4, 2, 2]
    assert replies == together[0]
    assert losses == [None if one is None else pytest.approx(one) for one in together[1]]  # type: ignore[attr-defined]
