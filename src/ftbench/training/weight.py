"""What makes a micro-batch heavy."""

from collections.abc import Sequence

from ftbench.training.batching import MicroBatch
from ftbench.training.encoding import EncodedExample
from ftbench.training.row import row_length


def weigh(batch: Sequence[EncodedExample], *, padded: bool) -> tuple[int, ...]:
    """Return what memory grows with: the micro-batch that takes most has most of one of these.

    In a row without padding these are its tokens, a shared prompt counted once; the completions' tokens, each of which
    has logits; and both together. In padded rows they are the cells; those of them that have logits; the completions'
    tokens.

    Args:
        batch: may be empty.
        padded: whether each sequence has a row of its own.
    """
    sequences = [one for example in batch for one in (example.chosen, example.rejected) if one is not None]
    completions = sum(one.completion_length for one in sequences)
    if not padded:
        length = row_length(sequences)
        return length, completions, length + completions
    width = max((len(one.ids) for one in sequences), default=0)
    first = min((one.prompt_length for one in sequences), default=1) - 1
    return len(sequences) * width, len(sequences) * (width - first), completions


def heaviest_of(batches: Sequence[MicroBatch], *, padded: bool) -> list[MicroBatch]:
    """Return those that have most of what micro-batches are weighed by; one that has most of several only once."""
    weights = [weigh(batch, padded=padded) for batch in batches]
    highest = [
        max(range(len(batches)), key=lambda place: (weights[place][kind], sum(weights[place])))
        for kind in range(len(weights[0]))
    ]
    return [batches[place] for place in dict.fromkeys(highest)]
