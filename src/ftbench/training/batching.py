"""Which examples make up which step: fixed beforehand by the seed and the token budget."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ftbench.training.encoding import EncodedExample

MicroBatch = tuple[EncodedExample, ...]


def batch_tokens(batch: Sequence[EncodedExample]) -> int:
    """Return the real tokens of a micro-batch."""
    return sum(example.tokens for example in batch)


def batch_completion_tokens(batch: Sequence[EncodedExample]) -> int:
    """Return the tokens of a micro-batch's completions, each of which takes a row of logits."""
    return sum(example.completion_tokens for example in batch)


@dataclass(frozen=True)
class Step:
    """What one optimiser step sees: the effective batch."""

    examples: tuple[EncodedExample, ...]

    @property
    def tokens(self) -> int:
        """Real tokens of the step."""
        return batch_tokens(self.examples)

    @property
    def completion_tokens(self) -> int:
        """Tokens of the chosen completions."""
        return sum(example.chosen.completion_length for example in self.examples)

    @property
    def prompts(self) -> int:
        """Examples of the step."""
        return len(self.examples)

    @cached_property
    def lightest(self) -> EncodedExample:
        """The example with the fewest tokens."""
        return min(self.examples, key=lambda example: example.tokens)

    @property
    def sequences(self) -> int:
        """Completions of the step, each behind its prompt."""
        return sum(1 if example.rejected is None else 2 for example in self.examples)


@dataclass(frozen=True)
class Plan:
    """What is trained on, in which order, and for how long.

    The effective batch is `effective_batch_size` prompts in every step, also across the end of an epoch; epochs are
    shuffled anew by `seed`. Training ends when `tokens` real tokens are reached, or after `seconds`, where there is
    such a limit; every step is whole, so that the last one may go a little beyond.
    """

    examples: tuple[EncodedExample, ...]
    tokens: int
    effective_batch_size: int
    seed: int
    seconds: float | None = None

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Every step up to the token budget."""
        steps: list[Step] = []
        planned = 0
        stream = _epochs(self.examples, random.Random(self.seed))
        while planned < self.tokens:
            steps.append(Step(tuple(next(stream) for _ in range(self.effective_batch_size))))
            planned += steps[-1].tokens
        return tuple(steps)

    def split(self, share: float) -> "tuple[Plan, Plan]":
        """Cut the budget into a share and the rest; the rest has an order of its own.

        Raises:
            ValueError: the share is not between 0 and 1, both excluded.
        """
        if not 0 < share < 1:
            raise ValueError(f"a share between 0 and 1 is needed, not {share}")
        first = round(self.tokens * share)
        seconds = None if self.seconds is None else self.seconds * share
        rest = None if self.seconds is None else self.seconds * (1 - share)
        return (
            replace(self, tokens=max(1, first), seconds=seconds),
            replace(self, tokens=max(1, self.tokens - first), seconds=rest, seed=self.seed + 1),
        )

    def demonstrations(self) -> "Plan":
        """The same plan without the rejected completions: more prompts for the same tokens."""
        return replace(self, examples=tuple(replace(example, rejected=None) for example in self.examples))


def _epochs(examples: Sequence[EncodedExample], order: random.Random) -> Iterator[EncodedExample]:
    while True:
        yield from order.sample(examples, len(examples))


def cut(examples: Sequence[EncodedExample], micro_batch_tokens: int) -> list[MicroBatch]:
    """Cut into micro-batches of at most `micro_batch_tokens`, in order; a longer example is one of its own.

    They are as few as there can be, and of as many the heaviest is as light as there can be: it says what memory a step
    takes.
    """
    batches = _filled(examples, micro_batch_tokens)
    low, high = max((example.tokens for example in examples), default=0), micro_batch_tokens
    while low < high:
        middle = (low + high) // 2
        lighter = _filled(examples, middle)
        if len(lighter) > len(batches):
            low = middle + 1
        else:
            batches, high = lighter, middle
    return batches


def _filled(examples: Sequence[EncodedExample], size: int) -> list[MicroBatch]:
    """Fill micro-batches in turn, each up to a size in tokens."""
    batches: list[list[EncodedExample]] = []
    room = 0
    for example in examples:
        if not batches or example.tokens > room:
            batches.append([])
            room = size
        batches[-1].append(example)
        room -= example.tokens
    return [tuple(batch) for batch in batches]
