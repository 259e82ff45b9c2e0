"""Sequences laid out in one row without padding; a prompt that several of them begin with stands there once."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftbench.models.attention import Block
from ftbench.training.encoding import TokenSequence

WORTH = 16
"""Tokens from which on a prompt is shared: before, a block more costs as much as encoding the prompt again."""


@dataclass(frozen=True)
class Row:
    """What a model is run on, as lists.

    `predicting` are the positions in the row whose output predicts `targets`: the completions' tokens, of all
    sequences in turn.
    """

    ids: list[int]
    blocks: list[Block]
    predicting: list[int]
    targets: list[int]


def lay_out(sequences: Sequence[TokenSequence], worth: int = WORTH) -> Row:
    """Put sequences behind each other; a completion whose prompt already stands in the row goes without it.

    Args:
        sequences: in the order of their targets.
        worth: tokens that a prompt must have to be shared.
    """
    row = Row([], [], [], [])
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
    return row
