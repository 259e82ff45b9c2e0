"""Packed attention and the scoring head, over models of many kinds."""

import random
from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from ftbench.models.attention import is_packed, packed_attention
from ftbench.models.head import CHUNK_BYTES, ScoringHead, TokenLogProbs
from ftbench.models.inturn import InTurn
from ftbench.models.loading import prepare
from ftbench.models.packing import Block, pack
from ftbench.models.tiled import Tiled, tiles_of
from ftbench.models.vocabulary import InPlace
from ftbench.training.encoding import TokenSequence
from ftbench.training.logprobs import sequence_logprobs
from ftbench.training.row import lay_out, rounded
from tiny import VOCABULARY, draw_sequence

CPU = torch.device("cpu")
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZE, "num_key_value_heads": 2}
GPT2_SIZE: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# A model's configuration, whether it takes our attention, and whether its head may score.
KINDS = {
    "llama": (LlamaConfig(**GROUPED), True, True),
    "qwen2": (Qwen2Config(**GROUPED), True, True),
    "window": (MistralConfig(**GROUPED, sliding_window=5), True, True),
    "gpt2": (GPT2Config(**TOKENS, **GPT2_SIZE, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), True, True),
    "neox": (GPTNeoXConfig(**SIZE), True, True),
    "opt": (OPTConfig(**TOKENS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4), True, True),
    "logits scaled": (GraniteConfig(**GROUPED, logits_scaling=3.0), True, False),
    "logits scaled by a setting": (CohereConfig(**GROUPED), True, False),
    "logits capped": (Gemma2Config(**GROUPED, head_dim=8, sliding_window=5), False, False),
    "without positions": (BloomConfig(**TOKENS, hidden_size=32, n_layer=2, n_head=4), False, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_packed_scores_and_gradients_equal_padded_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, packs, scores = KINDS[kind]
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * VOCABULARY * 7)  # several chunks, the last of another size
    model = build(config)
    expected, expected_gradients = scored(model, packed=False)
    prepare(model)
    assert is_packed(model) == packs
    assert isinstance(model.get_output_embeddings(), ScoringHead) == scores
    found, gradients = scored(model, packed=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    scale = max(gradient.abs().max().item() for gradient in expected_gradients.values())  # some are 0 but for rounding
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6 * scale)


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """A model with weights so large that every token that is attended to shows in the logits."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def scored(model: PreTrainedModel, *, packed: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Scores of six sequences, two of one prompt, and gradients of a sum that weighs each otherwise."""
    draw = random.Random(0)
    sequences = [draw_sequence(draw) for _ in range(4)] + [draw_sequence(draw, prompt=18)]
    shared = sequences[-1].ids[:18]
    sequences.append(TokenSequence((*shared, *draw_sequence(draw).ids), 18))
    model.zero_grad()
    found = sequence_logprobs(model, sequences, packed=packed)
    (found * torch.arange(1, 7)).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found.detach(), gradients


def test_a_prepared_model_generates_and_answers_as_before() -> None:
    model = build(KINDS["llama"][0])
    ids, mask = torch.randint(3, VOCABULARY, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}

    def outputs() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            made = model.generate(**inputs, max_new_tokens=12, do_sample=False)  # type: ignore[operator]
            return model(**inputs).logits, made

    before = outputs()
    prepare(model)
    assert is_packed(model)
    for now, then in zip(outputs(), before, strict=True):
        torch.testing.assert_close(now, then, rtol=1e-5, atol=1e-5)


def test_a_model_that_keeps_the_packing_to_itself_fails_and_is_not_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(KINDS["llama"][0])
    forward = model.base_model.forward
    monkeypatch.setattr(model.base_model, "forward", lambda **given: forward(**{**given, "packing": None}))
    ids = torch.zeros(1, 4, dtype=torch.long)
    prepare(model)
    assert not is_packed(model)
    model.set_attn_implementation("ftbench_packed")
    with pytest.raises(RuntimeError):
        model(input_ids=ids, **pack([Block(0, 2), Block(2, 2)], CPU))


@pytest.mark.parametrize("asked", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"is_causal": False}])
def test_what_the_attention_cannot_do_it_refuses(asked: dict[str, Any]) -> None:
    one = torch.zeros(1, 4, 4, 8)
    module: Any = SimpleNamespace()
    with pytest.raises(NotImplementedError):
        packed_attention(module, one, one, one, None, packing=pack([Block(0, 2), Block(2, 2)], CPU)["packing"], **asked)


def seen_by(blocks: list[Block], window: int | None) -> Tensor:
    """What each token attends to, by its definition, `[seq, seq]`."""
    length = blocks[-1].begin + blocks[-1].length
    seen = torch.zeros(length, length, dtype=torch.bool)
    for block in blocks:
        places = [*range(block.prefix_begin, block.prefix_begin + block.prefix_length)]
        places += range(block.begin, block.begin + block.length)
        for index in range(block.length):
            reach = places[: block.prefix_length + index + 1]
            seen[block.begin + index, reach[-(window or length) :]] = True
    return seen


def by_definition(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float | None) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scale, enable_gqa=True
    ).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("tiled", [False, True])
def test_attention_has_the_gradients_of_its_definition(
    window: int | None, scale: float | None, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftbench.models.tiled.QUERIES", 4)
    monkeypatch.setattr("ftbench.models.tiled.KEYS", 3)
    torch.manual_seed(0)
    blocks = [Block(0, 5), Block(5, 4), Block(9, 3, 0, 4), Block(12, 1)]
    packing = pack(blocks, CPU)["packing"]
    query = torch.randn(1, 4, 13, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(1, 2, 13, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def found(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if tiled:
            tiles = tiles_of(packing, window, query.dtype)
            return Tiled.apply(query, key, value, tiles, scale)  # type: ignore[no-any-return,no-untyped-call]
        return InTurn.apply(query, key, value, packing, window, scale)  # type: ignore[no-any-return,no-untyped-call]

    expected = by_definition(query, key, value, seen_by(blocks, window), scale)
    torch.testing.assert_close(found(query, key, value), expected)
    assert torch.autograd.gradcheck(found, (query, key, value))


@pytest.mark.parametrize("window", [None, 70])
def test_in_half_precision_attention_is_as_near_as_it_is(window: int | None) -> None:
    torch.manual_seed(0)
    module: Any = SimpleNamespace()
    blocks = [Block(0, 150), Block(150, 75), Block(225, 40, 0, 90), Block(265, 3), Block(268, 132, 150, 30)]
    packing = pack(blocks, CPU)["packing"]
    query = torch.randn(1, 6, 400, 16, dtype=torch.bfloat16)
    key, value = (torch.randn(1, 2, 400, 16, dtype=torch.bfloat16) for _ in range(2))
    grad = torch.randn(1, 400, 6, 16, dtype=torch.bfloat16)

    def run(dtype: torch.dtype, attend: Callable[..., Tensor]) -> list[Tensor]:
        given = [one.to(dtype, copy=True).requires_grad_() for one in (query, key, value)]
        output = attend(*given)
        assert output.dtype == dtype
        output.backward(grad.to(dtype))
        return [output, *(one.grad for one in given if one.grad is not None)]

    asked: dict[str, Any] = {"packing": packing, "sliding_window": window}
    half = run(torch.bfloat16, lambda q, k, v: packed_attention(module, q, k, v, None, **asked)[0])
    seen = seen_by(blocks, window)
    exact = run(torch.float64, lambda q, k, v: by_definition(q, k, v, seen, None))
    assert len(half) == len(exact) == 4
    for mine, its in zip(half, exact, strict=True):
        assert (mine - its).norm() < 0.01 * its.norm()


@pytest.mark.parametrize(("chunk", "wide"), [(1, 1), (3, 2), (7, 3), (100, 100)])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_scores_have_the_gradients_of_their_definition(chunk: int, wide: int, frozen: bool, biased: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=not frozen)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=not frozen) if biased else None
    targets = torch.randint(0, 11, (7,))

    def found(*tensors: Tensor | None) -> Tensor:
        return TokenLogProbs.apply(*tensors, targets, chunk, wide, InPlace())  # type: ignore[no-any-return,no-untyped-call]

    expected = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(found(hidden, weight, bias), expected, rtol=1e-12, atol=1e-12)
    given: Any = (hidden, weight, bias)
    assert torch.autograd.gradcheck(found, given)


@pytest.mark.parametrize("frozen", [False, True])
def test_in_half_precision_the_scores_gradients_are_as_near_as_it_is(frozen: bool) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 16), torch.randn(300, 16)
    targets, weigh = torch.randint(0, 300, (50,)), torch.rand(50)

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        tensors = [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(not frozen)]
        scores: Tensor = TokenLogProbs.apply(*tensors, None, targets, 20, 3, InPlace())  # type: ignore[no-untyped-call]
        assert scores.dtype == torch.float32
        (scores * weigh).sum().backward()
        return [tensor.grad.float() for tensor in tensors if tensor.grad is not None]

    half, single = gradients(torch.bfloat16), gradients(torch.float32)
    assert len(half) == 2 - frozen
    for mine, its in zip(half, single, strict=True):
        assert (mine - its).norm() < 0.01 * its.norm()


def test_a_prompt_of_several_completions_stands_in_the_row_once() -> None:
    prompt, other = tuple(range(10, 14)), (20, 21)
    sequences = [
        TokenSequence((*prompt, 30, 31), 4),
        TokenSequence((*other, 40), 2),
        TokenSequence((*prompt, 50, 51, 52), 4),
        TokenSequence((*other, 60), 2),
    ]
    row = lay_out(sequences, worth=3)
    assert row.ids == [*prompt, 30, 31, *other, 40, 50, 51, 52, *other, 60]
    assert row.blocks == [Block(0, 6), Block(6, 3), Block(9, 3, 0, 4), Block(12, 3)]
    assert row.targets == [30, 31, 40, 50, 51, 52, 60]
    assert row.predicting == [3, 4, 7, 3, 9, 10, 13]
    assert pack(row.blocks, CPU)["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 4, 5, 6, 0, 1, 2]]


def test_a_row_is_never_longer_than_its_sequences_and_gives_the_same_for_all_of_them() -> None:
    draw = random.Random(1)
    sequences = [draw_sequence(draw, prompt=draw.randint(1, 4)) for _ in range(30)]
    sequences += [TokenSequence((*one.ids[: one.prompt_length], 5, 6), one.prompt_length) for one in sequences]
    apart, shared = lay_out(sequences, worth=1000), lay_out(sequences, worth=1)
    ids = [token for sequence in sequences for token in sequence.ids]
    assert apart.ids == ids + [0] * (rounded(len(ids)) - len(ids))
    assert len(shared.ids) <= rounded(len(ids) - sum(one.prompt_length for one in sequences[30:]))
    assert shared.scores == apart.scores == sum(one.completion_length for one in sequences)
    assert shared.targets == apart.targets
    assert [shared.ids[p] for p in shared.predicting[: shared.scores]] == [
        apart.ids[p] for p in apart.predicting[: apart.scores]
    ]


@given(st.integers(1, 10**6))
def test_rows_have_few_sizes_and_little_filler(count: int) -> None:
    assert count <= rounded(count) <= min(1.125 * count, count + 63)
    assert rounded(rounded(count)) == rounded(count)


def test_few_sizes() -> None:
    assert len({rounded(count) for count in range(1, 4097)}) == 112
    assert [rounded(count) for count in (1, 15, 16, 17, 33, 129, 513, 1025)] == [1, 15, 16, 18, 36, 144, 576, 1088]
