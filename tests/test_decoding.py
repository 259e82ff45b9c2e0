"""Replies token by token: what a row is told is what the whole sequence says, and does not hang on the others."""

import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from ftbench.models.attention import is_packed
from ftbench.models.decoding import ROOM, ROWS, Decoder, Row, Shelf, Span, Writing
from ftbench.models.loading import prepare
from tiny import VOCABULARY

TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZE: dict[str, Any] = {
    **TOKENS,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
KINDS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZE, num_key_value_heads=2),
    "window": MistralConfig(**SIZE, num_key_value_heads=2, sliding_window=9),
    "gpt2": GPT2Config(**TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "neox": GPTNeoXConfig(**SIZE),
    "opt": OPTConfig(**TOKENS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4),
}


def build(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return prepare(model.eval().to(dtype))


def draw_rows(seed: int, count: int, longest: int = 90) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, longest))] for _ in range(count)]


def write_all(decoder: Decoder, rows: list[list[int]], lengths: list[int], joins: list[int]) -> list[list[Tensor]]:
    """Write each row greedily to its length; it joins after so many passes of the others."""
    found: list[list[Tensor]] = [[] for _ in rows]
    living: dict[Row, int] = {}
    step = 0
    while living or any(join >= step for join in joins):
        for index, join in enumerate(joins):
            if join == step:
                row, logits = decoder.read(rows[index])
                found[index].append(logits)
                living[row] = index
        if living:
            newest = {row: int(found[index][-1].argmax()) for row, index in living.items()}
            for row, logits in decoder.write(newest).items():
                found[living[row]].append(logits)
        for row in [row for row, index in living.items() if len(found[index]) >= lengths[index]]:
            decoder.drop(row)
            del living[row]
        step += 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_come_and_go_say_what_whole_sequences_say(kind: str) -> None:
    model = build(KINDS[kind], torch.float64)
    assert is_packed(model)
    rows, draw = draw_rows(1, 9), random.Random(2)
    lengths, joins = [draw.randint(2, 30) for _ in rows], [draw.randint(0, 12) for _ in rows]
    decoder = Decoder(model)
    found = write_all(decoder, rows, lengths, joins)
    assert decoder.held == 0
    assert any(len(ids) < ROOM < len(ids) + length - 1 for ids, length in zip(rows, lengths, strict=True))
    for ids, logits in zip(rows, found, strict=True):
        said = [int(one.argmax()) for one in logits]
        with torch.inference_mode():
            whole = model(input_ids=torch.tensor([ids + said[:-1]]), use_cache=False).logits[0, len(ids) - 1 :]
        torch.testing.assert_close(torch.stack(logits), whole.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [2, 7, ROWS, ROWS + 3])
def test_in_bf16_every_bit_is_the_same_alone_and_among_others(count: int) -> None:
    model = build(KINDS["llama"], torch.bfloat16)
    rows = draw_rows(3, count)
    lengths = [random.Random(index).randint(2, 40) for index in range(count)]
    together = write_all(Decoder(model), rows, lengths, [index % 5 for index in range(count)])
    for ids, length, logits in list(zip(rows, lengths, together, strict=True))[:7]:
        (alone,) = write_all(Decoder(model), [ids], [length], [0])
        assert torch.equal(torch.stack(alone), torch.stack(logits))


@pytest.mark.parametrize("sharing", [1, 3, 5])
def test_attention_is_the_same_sum_whichever_thread_computes_it(sharing: int) -> None:
    torch.manual_seed(0)
    groups, dim = 3, 64
    # Equal weights over large values that cancel out: another order of adding is seen in every second sum.
    large = torch.randn(ROWS, groups, ROOM // 2, dim) * 2.0 ** torch.randint(-12, 12, (ROWS, groups, ROOM // 2, dim))
    values = torch.cat([large, -large.flip(2)], dim=2).bfloat16()
    keys = torch.randn(ROWS, groups, ROOM, dim).bfloat16()
    query = torch.zeros(1, groups * sharing, ROWS, dim).bfloat16()

    def attend(rows: slice) -> Tensor:
        shelf = Shelf(ROOM)
        shelf.layers = [[keys[rows].clone(), values[rows].clone()]]
        ends = torch.full((rows.stop - rows.start,), ROOM - 1)
        key, value = (one[rows, :, -1].transpose(0, 1)[None] for one in (keys, values))
        return Writing([Span(shelf, 0, 0, ends)]).attend(query[:, :, rows], key, value, None, None)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        together = attend(slice(0, ROWS))
        for index in range(ROWS):
            assert torch.equal(attend(slice(index, index + 1)), together[:, index : index + 1])
    finally:
        torch.set_num_threads(threads)


def test_memory_is_given_back() -> None:
    decoder = Decoder(build(KINDS["llama"], torch.float32))
    rows = [decoder.read([5] * length)[0] for length in (3, 70, 10)]
    assert decoder.held == 2 * ROOM + 2 * ROOM
    decoder.drop(rows[0])
    decoder.write(dict.fromkeys(rows[1:], 7))
    decoder.drop(rows[1])
    assert decoder.held == 2 * ROOM
    decoder.drop(rows[2])
    assert decoder.held == 0


def rooms(rows: Iterable[Row]) -> int:
    return sum(row.shelf.room for row in rows)


def test_what_is_held_stays_by_what_rows_need_and_within_the_limit() -> None:
    model, draw = build(KINDS["llama"], torch.float32), random.Random(4)
    limit = 24 * ROOM
    free, bound = Decoder(model), Decoder(model, limit)
    for decoder in (free, bound):
        living: list[Row] = []
        loads = []
        for step in range(300):
            length = draw.choice([1, 1, ROOM - 2, 2 * ROOM - 3, 5 * ROOM])
            # as the engine: no row joins for which, with all that come, there is no room
            if rooms(living) + (length // ROOM + 2) * ROOM + len(living) * ROOM <= limit and step % 40 < 25:
                living.append(decoder.read([5] * length)[0])
            decoder.write(dict.fromkeys(living, 7))
            for row in [row for row in living if draw.random() < 0.1]:
                living.remove(row)
                decoder.drop(row)
            assert decoder.held < 4 * max(1, rooms(living))
            if decoder is bound:
                assert decoder.held <= limit
            loads.append(rooms(living))
        assert max(loads) > limit // 2  # or there was no press to speak of
    assert free.held >= bound.held


def test_a_shelf_that_few_rows_need_gives_places_up() -> None:
    decoder = Decoder(build(KINDS["llama"], torch.float32))
    rows = [decoder.read([5] * length)[0] for length in range(1, 17)]
    assert decoder.held == 16 * ROOM
    for row in rows[2:]:
        decoder.drop(row)
    assert decoder.held <= 4 * ROOM
    alone = Decoder(decoder.model)
    expected = alone.write({alone.read([5, 5])[0]: 7})
    torch.testing.assert_close(decoder.write(dict.fromkeys(rows[:2], 7))[rows[1]], *expected.values())


def test_a_pass_that_failed_can_be_written_again_row_by_row() -> None:
    model = build(KINDS["llama"], torch.bfloat16)
    prompts = draw_rows(5, 5)
    prompts[1] = [9] * ROOM  # it moves to another shelf in this very pass
    one, two = Decoder(model), Decoder(model)
    rows, others = ([decoder.read(ids)[0] for ids in prompts] for decoder in (one, two))
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.write(dict.fromkeys(rows, 7))
    hook.remove()
    together = two.write(dict.fromkeys(others, 7))
    for row, other in zip(reversed(rows), reversed(others), strict=True):
        assert torch.equal(one.write({row: 7})[row], together[other])
    some, all_of_them = one.write(dict.fromkeys(rows[::2], 8)), two.write(dict.fromkeys(others, 8))
    for row, other in zip(rows[::2], others[::2], strict=True):
        assert torch.equal(some[row], all_of_them[other])


def test_what_is_held_may_be_asked_while_shelves_come_and_go() -> None:
    decoder = Decoder(build(KINDS["llama"], torch.float32))
    for length in (3, 70):
        decoder.read([5] * length)

    class Restless(Shelf):
        """Whoever looks at it sees the others change meanwhile, as another thread would change them."""

        def __getattribute__(self, name: str) -> Any:
            shelves.setdefault(100 * len(shelves), Shelf(100))
            return super().__getattribute__(name)

    shelves = decoder._shelves
    for shelf in list(shelves.values()):
        shelf.__class__ = Restless
    assert decoder.held == 3 * ROOM
