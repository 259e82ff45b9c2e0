"""Examples as tokens."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ftbench.data.task import Example
from ftbench.errors import FtbenchError, Skip
from ftbench.models.chat import ChatFormat

MIN_COMPLETION = 8
"""Tokens that a prompt must leave for its completion, or the example is left out."""


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and one completion: the first `prompt_length` tokens carry no loss."""

    ids: tuple[int, ...]
    prompt_length: int

    @property
    def completion_length(self) -> int:
        """Tokens that carry loss."""
        return len(self.ids) - self.prompt_length


@dataclass(frozen=True)
class EncodedExample:
    """An example as tokens; `rejected` is None where there is none or it is not needed.

    `reference` holds log p(completion | prompt) in nats under the reference model, of chosen and rejected, once it is
    known.
    """

    chosen: TokenSequence
    rejected: TokenSequence | None
    reference: tuple[float, float] | None = None

    @property
    def tokens(self) -> int:
        """Real tokens that one pass over the example reads."""
        return len(self.chosen.ids) + (len(self.rejected.ids) if self.rejected else 0)

    @property
    def completion_tokens(self) -> int:
        """Tokens of its completions, each of which takes a row of logits."""
        return self.chosen.completion_length + (self.rejected.completion_length if self.rejected else 0)


@dataclass(frozen=True)
class Encoded:
    """All training examples as tokens, how many completions were cut, and what was left out, by reason."""

    examples: tuple[EncodedExample, ...]
    cut: int
    left_out: dict[str, int]


TOO_LONG = "prompt too long"
NO_REJECTED = "no rejected completion"
SAME = "chosen and rejected the same"


def encode(examples: Sequence[Example], chat: ChatFormat, max_length: int, *, preferences: bool) -> Encoded:
    """Encode examples; a completion longer than `max_length` leaves is cut, without an end of sequence.

    Args:
        examples: from the task.
        chat: the model's format.
        max_length: tokens of prompt and completion together.
        preferences: whether the rejected completions are needed; examples without one are then left out, and those
            whose completions are the same as far as they fit.

    Raises:
        Skip: preferences are needed, and no example has both completions.
        FtbenchError: all prompts are too long.
    """
    encoded = []
    left_out: Counter[str] = Counter()
    cut = 0
    for example in examples:
        prompt = chat.prompt_ids(example.prompt)
        if len(prompt) + MIN_COMPLETION > max_length:
            left_out[TOO_LONG] += 1
            continue
        if preferences and example.rejected is None:
            left_out[NO_REJECTED] += 1
            continue
        completions = [example.chosen, *([example.rejected] if preferences and example.rejected is not None else [])]
        whole = [(*prompt, *chat.completion_ids(completion)) for completion in completions]
        sequences = [TokenSequence(ids[:max_length], len(prompt)) for ids in whole]
        if preferences and sequences[0] == sequences[1]:
            left_out[SAME] += 1
            continue
        cut += sum(len(ids) > max_length for ids in whole)
        encoded.append(EncodedExample(sequences[0], sequences[1] if preferences else None))
    if not encoded and set(left_out) == {TOO_LONG}:
        raise FtbenchError(
            f"all {len(examples)} prompts are too long for {max_length} tokens; raise --max-length or shorten them"
        )
    if not encoded:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in left_out.items())
        raise Skip(f"no training example has a chosen and another, rejected completion ({reasons})")
    return Encoded(tuple(encoded), cut, dict(left_out))
