"""Which examples make up which step: fixed beforehand by the seed and the token budget."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ftbench.training.encoding import EncodedExample

MicroBatch = tuple[EncodedExample, ...]


@dataclass(frozen=True)
class Step:
    """The micro-batches of one optimiser step; together they hold the effective batch."""

    micro_batches: tuple[MicroBatch, ...]

    @property
    def tokens(self) -> int:
        """Real tokens of the step."""
        return sum(example.tokens for batch in self.micro_batches for example in batch)

    @property
    def prompts(self) -> int:
        """Examples of the step."""
        return sum(len(batch) for batch in self.micro_batches)


def plan_steps(
    examples: Sequence[EncodedExample], tokens: int, effective_batch_size: int, micro_batch_tokens: int, seed: int
) -> tuple[Step, ...]:
    """Plan every step of training: shuffled epochs, until `tokens` real tokens are reached.

    The effective batch is `effective_batch_size` prompts in every step, also across the end of an epoch. Every step
    is whole, so that the last one may go a little beyond `tokens`.
    """
    steps: list[Step] = []
    planned = 0
    stream = _epochs(examples, random.Random(seed))
    while planned < tokens:
        step = Step(tuple(_fill([next(stream) for _ in range(effective_batch_size)], micro_batch_tokens)))
        steps.append(step)
        planned += step.tokens
    return tuple(steps)


def _epochs(examples: Sequence[EncodedExample], order: random.Random) -> Iterator[EncodedExample]:
    while True:
        yield from order.sample(examples, len(examples))


def _fill(batch: list[EncodedExample], micro_batch_tokens: int) -> Iterator[MicroBatch]:
    """Cut a batch into micro-batches of at most `micro_batch_tokens`; a longer example is one of its own."""
    current: list[EncodedExample] = []
    for example in batch:
        if current and sum(e.tokens for e in current) + example.tokens > micro_batch_tokens:
            yield tuple(current)
            current = []
        current.append(example)
    yield tuple(current)
