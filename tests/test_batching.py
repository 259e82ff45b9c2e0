import dataclasses
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbench.data.task import Example
from ftbench.errors import FtbenchError, Skip
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_tokenizer
from ftbench.training.batching import Plan, Step, cut
from ftbench.training.encoding import MIN_COMPLETION, NO_REJECTED, SAME, TOO_LONG, EncodedExample, TokenSequence, encode


def make_examples(lengths: list[tuple[int, int]]) -> list[EncodedExample]:
    """Examples that are told apart by their tokens; a rejected completion of length 0 is none."""
    return [
        EncodedExample(
            TokenSequence((index,) * chosen, 1), TokenSequence((index,) * rejected, 1) if rejected > 0 else None
        )
        for index, (chosen, rejected) in enumerate(lengths)
    ]


def plan(examples: list[EncodedExample], tokens: int, batch_size: int, seed: int) -> Plan:
    return Plan(tuple(examples), tokens, batch_size, seed)


def order_of(steps: tuple[Step, ...]) -> list[EncodedExample]:
    return [example for step in steps for example in step.examples]


EXAMPLES = st.lists(
    st.tuples(st.integers(2, 60), st.one_of(st.just(0), st.integers(2, 60))), min_size=1, max_size=20
).map(make_examples)
TOKENS = st.integers(1, 3000)
BATCH = st.integers(1, 12)
MICRO_TOKENS = st.integers(1, 300)
SEED = st.integers(0, 2**32)
many = settings(deadline=None, max_examples=60)


@many
@given(EXAMPLES, TOKENS, BATCH, SEED)
def test_every_step_holds_the_effective_batch(
    examples: list[EncodedExample], tokens: int, batch_size: int, seed: int
) -> None:
    for step in plan(examples, tokens, batch_size, seed).steps:
        assert len(step.examples) == step.prompts == batch_size


@many
@given(EXAMPLES, MICRO_TOKENS)
def test_a_micro_batch_is_within_its_tokens_or_one_example(examples: list[EncodedExample], micro_tokens: int) -> None:
    batches = cut(examples, micro_tokens)
    assert [example for batch in batches for example in batch] == examples
    for batch in batches:
        size = sum(len(e.chosen.ids) + (len(e.rejected.ids) if e.rejected else 0) for e in batch)
        assert len(batch) == 1 or 0 < size <= micro_tokens


@many
@given(EXAMPLES.map(lambda examples: examples[:8]), MICRO_TOKENS)
def test_micro_batches_are_as_few_and_of_as_many_as_light_as_can_be(
    examples: list[EncodedExample], micro_tokens: int
) -> None:
    """Against every way to cut them in order."""
    sizes = [example.tokens for example in examples]
    allowed = []
    for count in range(len(sizes)):
        for places in combinations(range(1, len(sizes)), count):
            parts = [sizes[begin:end] for begin, end in pairwise((0, *places, len(sizes)))]
            if all(len(part) == 1 or sum(part) <= micro_tokens for part in parts):
                allowed.append((len(parts), max(map(sum, parts))))
    batches = cut(examples, micro_tokens)
    assert (len(batches), max(sum(e.tokens for e in batch) for batch in batches)) == min(allowed)


@many
@given(EXAMPLES, TOKENS, BATCH, SEED)
def test_the_token_budget_is_reached_and_by_no_more_than_one_step(
    examples: list[EncodedExample], tokens: int, batch_size: int, seed: int
) -> None:
    steps = plan(examples, tokens, batch_size, seed).steps
    assert sum(step.tokens for step in steps) >= tokens
    assert sum(step.tokens for step in steps[:-1]) < tokens


@many
@given(EXAMPLES, TOKENS, BATCH, SEED)
def test_every_epoch_sees_every_example_once(
    examples: list[EncodedExample], tokens: int, batch_size: int, seed: int
) -> None:
    order = order_of(plan(examples, tokens, batch_size, seed).steps)
    for start in range(0, len(order), len(examples)):
        epoch = [example.chosen.ids[0] for example in order[start : start + len(examples)]]
        assert len(set(epoch)) == len(epoch)


@many
@given(EXAMPLES, TOKENS, BATCH, SEED)
def test_the_same_seed_makes_the_same_order(
    examples: list[EncodedExample], tokens: int, batch_size: int, seed: int
) -> None:
    assert plan(examples, tokens, batch_size, seed).steps == plan(examples, tokens, batch_size, seed).steps


def test_another_seed_gives_another_order() -> None:
    examples = make_examples([(5, 0)] * 30)
    orders = [tuple(e.chosen.ids[0] for e in order_of(plan(examples, 150, 8, seed).steps)) for seed in range(20)]
    assert len(set(orders)) == 20


def test_epochs_are_shuffled_anew() -> None:
    order = order_of(plan(make_examples([(5, 0)] * 30), 300, 30, 0).steps)
    assert order[:30] != order[30:60]


@pytest.fixture
def chat(tiny_llama: Path) -> ChatFormat:
    return ChatFormat(load_tokenizer(tiny_llama))


def test_an_example_is_its_prompt_then_its_completion_then_the_end(chat: ChatFormat) -> None:
    encoded = encode([Example("why?", "a boat", "tea")], chat, 200, preferences=True)
    (example,) = encoded.examples
    assert example.rejected is not None
    assert (encoded.cut, encoded.left_out) == (0, {})
    for sequence, completion in ((example.chosen, "a boat"), (example.rejected, "tea")):
        prompt, reply = list(sequence.ids[: sequence.prompt_length]), list(sequence.ids[sequence.prompt_length :])
        assert chat.tokenizer.decode(prompt) == "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n"
        assert chat.tokenizer.decode(reply) == f"{completion}<|im_end|>"
        assert sequence.completion_length == len(completion) + 1


def test_demonstrations_are_encoded_without_the_rejected_completion(chat: ChatFormat) -> None:
    encoded = encode([Example("why?", "a boat", "tea" * 200)], chat, 200, preferences=False)
    assert encoded.examples[0].rejected is None
    assert encoded.cut == 0


@pytest.mark.parametrize(("over", "cut"), [(-1, 0), (0, 0), (1, 1), (2, 1), (500, 1)])
def test_a_completion_that_is_too_long_is_counted_and_loses_its_end(chat: ChatFormat, over: int, cut: int) -> None:
    room = 40
    limit = len(chat.prompt_ids("why?")) + room
    encoded = encode([Example("why?", "x" * (room - 1 + over), "tea")], chat, limit, preferences=True)
    (example,) = encoded.examples
    assert encoded.cut == cut
    assert example.chosen.completion_length == room + min(over, 0)
    assert (example.chosen.ids[-1] == chat.end) == (not cut)
    assert example.rejected is not None
    assert example.rejected.ids[-1] == chat.end


def test_both_completions_of_an_example_may_be_cut(chat: ChatFormat) -> None:
    limit = len(chat.prompt_ids("why?")) + 20
    assert encode([Example("why?", "x" * 99, "y" * 99)], chat, limit, preferences=True).cut == 2


def test_a_prompt_without_room_for_a_completion_is_left_out_and_counted(chat: ChatFormat) -> None:
    fits, too_long = Example("x" * 50, "a boat", None), Example("x" * 51, "a boat", None)
    limit = len(chat.prompt_ids(fits.prompt)) + MIN_COMPLETION
    encoded = encode([too_long, fits, too_long], chat, limit, preferences=False)
    assert encoded.left_out == {TOO_LONG: 2}
    assert [example.chosen.prompt_length for example in encoded.examples] == [limit - MIN_COMPLETION]


def test_when_all_prompts_are_too_long_the_error_says_what_to_do(chat: ChatFormat) -> None:
    with pytest.raises(FtbenchError, match=r"all 2 prompts are too long for 60 tokens; raise --max-length"):
        encode([Example("x" * 300, "a boat", None)] * 2, chat, 60, preferences=False)


def test_examples_without_a_pair_are_left_out_and_counted(chat: ChatFormat) -> None:
    pair = Example("why?", "a boat", "tea")
    examples = [Example("how?", "a boat", None), pair, Example("who?", "x" * 300, "x" * 301)]
    encoded = encode(examples, chat, 200, preferences=True)
    assert encoded.left_out == {NO_REJECTED: 1, SAME: 1}
    assert encoded.examples == encode([pair], chat, 200, preferences=True).examples
    assert encoded.cut == 0
    assert len(encode(examples, chat, 200, preferences=False).examples) == 3


def test_without_any_pair_preferences_do_not_apply(chat: ChatFormat) -> None:
    with pytest.raises(Skip, match=r"^no training example has .* rejected completion \(no rejected completion: 2\)$"):
        encode([Example("why?", "a boat", None)] * 2, chat, 200, preferences=True)


@many
@given(EXAMPLES, TOKENS, BATCH, SEED, st.floats(0.05, 0.95))
def test_a_split_plan_shares_the_budget(
    examples: list[EncodedExample], tokens: int, batch_size: int, seed: int, share: float
) -> None:
    whole = dataclasses.replace(plan(examples, tokens, batch_size, seed), seconds=100.0)
    first, rest = whole.split(share)
    assert first.tokens + rest.tokens in (tokens, tokens + 1)  # at least one each
    assert first.tokens == pytest.approx(share * tokens, abs=1)
    assert (first.seconds or 0) + (rest.seconds or 0) == pytest.approx(100)
    assert first.steps[0] == whole.steps[0]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5])
def test_a_share_is_between_nothing_and_all(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        plan(make_examples([(5, 5)]), 100, 2, 0).split(share)


def test_demonstrations_take_more_prompts_for_the_same_tokens() -> None:
    pairs = plan(make_examples([(10, 10)] * 8), 400, 2, 0)
    alone = pairs.demonstrations()
    assert [sum(step.prompts for step in p.steps) for p in (pairs, alone)] == [20, 40]
    assert [sum(step.sequences for step in p.steps) for p in (pairs, alone)] == [40, 40]
