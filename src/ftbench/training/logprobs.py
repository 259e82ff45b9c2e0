"""Log-probabilities of completions: one code path for every algorithm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ftbench.training.encoding import EncodedExample, TokenSequence


@dataclass(frozen=True)
class CompletionLogProbs:
    """What a loss is computed from.

    Each of the log-probabilities is log p(completion | prompt) in nats, summed over the completion's tokens (its end
    of sequence included): float32, `[prompts]`. Lengths are in tokens, int64, `[prompts]`. The rejected ones are None
    for an algorithm that needs demonstrations only.
    """

    chosen: "Tensor"
    chosen_lengths: "Tensor"
    rejected: "Tensor | None" = None
    rejected_lengths: "Tensor | None" = None


def completion_logprobs(model: "PreTrainedModel", batch: "Sequence[EncodedExample]") -> CompletionLogProbs:
    """Run the model over a micro-batch and return the log-probabilities of its completions, with their graph."""
    import torch

    sequences = [example.chosen for example in batch]
    rejected = [example.rejected for example in batch if example.rejected is not None]
    sums = sequence_logprobs(model, [*sequences, *rejected])
    lengths = torch.tensor([s.completion_length for s in [*sequences, *rejected]], device=sums.device)
    count = len(sequences)
    if not rejected:
        return CompletionLogProbs(sums, lengths)
    return CompletionLogProbs(sums[:count], lengths[:count], sums[count:], lengths[count:])


def sequence_logprobs(model: "PreTrainedModel", sequences: "Sequence[TokenSequence]") -> "Tensor":
    """Return log p(completion | prompt) of every sequence: float32, `[sequences]`, in nats.

    The sequences stand one behind the other in a single row without padding, each with positions from 0; transformers
    then lets each attend within itself alone (tests hold this against padded rows). Only positions that predict a
    completion token reach the language-model head.
    """
    import torch
    from torch.nn.functional import cross_entropy

    device = model.device
    start = 0
    positions: list[int] = []
    predicting: list[int] = []
    owners: list[int] = []
    for index, sequence in enumerate(sequences):
        length = len(sequence.ids)
        positions.extend(range(length))
        predicting.extend(range(start + sequence.prompt_length - 1, start + length - 1))
        owners.extend([index] * sequence.completion_length)
        start += length
    ids = torch.tensor([token for sequence in sequences for token in sequence.ids], device=device)
    predicting_ids = torch.tensor(predicting, device=device)
    # No attention mask and no cache: either would make transformers forget where a sequence begins.
    logits = model(
        input_ids=ids[None],
        position_ids=torch.tensor(positions, device=device)[None],
        use_cache=False,
        logits_to_keep=predicting_ids,
    ).logits[0]  # [completion tokens, vocabulary]
    token_logprobs = -cross_entropy(logits.float(), ids[predicting_ids + 1], reduction="none")
    sums = torch.zeros(len(sequences), device=device)
    return sums.index_add(0, torch.tensor(owners, device=device), token_logprobs)
