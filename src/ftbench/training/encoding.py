"""Examples as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftbench.data.task import Example
from ftbench.errors import FtbenchError
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
    """An example as tokens; `rejected` is None where there is none or it is not needed."""

    chosen: TokenSequence
    rejected: TokenSequence | None

    @property
    def tokens(self) -> int:
        """Real tokens that one pass over the example reads."""
        return len(self.chosen.ids) + (len(self.rejected.ids) if self.rejected else 0)


@dataclass(frozen=True)
class Encoded:
    """All training examples as tokens, and what did not fit."""

    examples: tuple[EncodedExample, ...]
    cut: int
    left_out: int


def encode(examples: Sequence[Example], chat: ChatFormat, max_length: int, *, preferences: bool) -> Encoded:
    """Encode examples; a completion longer than `max_length` leaves is cut, without an end of sequence.

    Args:
        examples: from the task.
        chat: the model's format.
        max_length: tokens of prompt and completion together.
        preferences: whether the rejected completions are needed.

    Raises:
        FtbenchError: no example is left, or one has no rejected completion though preferences are needed.
    """
    encoded, cut, left_out = [], 0, 0
    for example in examples:
        prompt = chat.prompt_ids(example.prompt)
        if len(prompt) + MIN_COMPLETION > max_length:
            left_out += 1
            continue
        if preferences and example.rejected is None:
            raise FtbenchError(
                f"the prompt {example.prompt[:60]!r} has no rejected completion, which this algorithm needs"
            )
        completions = [example.chosen, *([example.rejected] if preferences and example.rejected is not None else [])]
        sequences = []
        for completion in completions:
            ids = [*prompt, *chat.completion_ids(completion)]
            cut += len(ids) > max_length
            sequences.append(TokenSequence(tuple(ids[:max_length]), len(prompt)))
        encoded.append(EncodedExample(sequences[0], sequences[1] if preferences else None))
    if not encoded:
        raise FtbenchError(
            f"all {left_out} prompts are too long for {max_length} tokens; raise --max-length or shorten them"
        )
    return Encoded(tuple(encoded), cut, left_out)
