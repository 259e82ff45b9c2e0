"""Sequences laid out in one row without padding; a prompt that several of them begin with stands there once."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftbench.models.packing import Block
from ftbench.training.encoding import TokenSequence

WORTH = 16
"""Tokens from which on a prompt is shared: before, a block more costs as much as encoding the prompt again."""


@dataclass(frozen=True)
class Row:
    """What a model is run on, as lists.

    `predicting` are the positions in the row whose output predicts `targets`: the completions' tokens, of all
    sequences in turn. The first `scores` of them are; what follows fills up to one of a few sizes, as do the last ids.
    """

    ids: list[int]
    blocks: list[Block]
    predicting: list[int]
    targets: list[int]
    scores: int


def lay_out(sequences: Sequence[TokenSequence], worth: int = WORTH) -> Row:
    """Put sequences behind each other; a completion whose prompt already stands in the row goes without it.

    Args:
        sequences: in the order of their targets.
        worth: tokens that a prompt must have to be shared.
    """
    row = Row([], [], [], [], 0)
    prompts: dict[tuple[int, ...], int] = {}
    for sequence in sequences:
        length = sequence.prompt_length
        prompt, completion = sequence.ids[:length], sequence.ids[length:]
        begin = len(row.ids)
        if length >= worth and prompt in prompts:
            first = prompts[prompt]
            row.blocks.append(Block(begin, len(completion), first, length))
            row.ids.extend(completion)
            row.predicting.extend([first + length - 1, *range(begin, begin + len(completion) - 1)])
        else:
            prompts.setdefault(prompt, begin)
            row.blocks.append(Block(begin, len(sequence.ids)))
            row.ids.extend(sequence.ids)
            row.predicting.extend(range(begin + length - 1, begin + len(sequence.ids) - 1))
        row.targets.extend(completion)
    return _filled(row)


def row_length(sequences: Sequence[TokenSequence], worth: int = WORTH) -> int:
    """Return how many tokens the row has that `lay_out` makes of sequences, before it is filled up."""
    length = 0
    prompts: set[tuple[int, ...]] = set()
    for sequence in sequences:
        prompt = sequence.ids[: sequence.prompt_length]
        shared = sequence.prompt_length >= worth and prompt in prompts
        length += sequence.completion_length if shared else len(sequence.ids)
        prompts.add(prompt)
    return length


def _filled(row: Row) -> Row:
    """Add tokens that nothing attends to, and scores that nobody reads."""
    length, scores = len(row.ids), len(row.targets)
    filler = rounded(length) - length
    unread = [0] * (rounded(scores) - scores)
    return Row(
        row.ids + [0] * filler,
        row.blocks + ([Block(length, filler)] if filler else []),
        row.predicting + unread,
        row.targets + unread,
        scores,
    )


def rounded(count: int) -> int:
    """Return the next of eight sizes for each power of two up to 512, of multiples of 64 beyond.

    Kernels that are made anew for every shape are then made for a few: oneDNN's take 2 ms each, and it never frees
    all of what they hold. That weighs more than a twentieth of tokens in addition.
    """
    step = 1 << min(6, max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step
