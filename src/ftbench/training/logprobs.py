"""Log-probabilities of completions: one code path for every algorithm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftbench.errors import FtbenchError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ftbench.training.batching import Step
    from ftbench.training.encoding import EncodedExample, TokenSequence


@dataclass(frozen=True)
class SequenceLogProbs:
    """Log-probabilities of one completion a prompt, all `[prompts]`.

    `sums` is log p(completion | prompt) in nats over the completion's tokens, its end of sequence included, float32;
    `lengths` counts these tokens, int64; `reference` is `sums` under the reference model, where one was asked for.
    """

    sums: "Tensor"
    lengths: "Tensor"
    reference: "Tensor | None" = None

    @property
    def per_token(self) -> "Tensor":
        """Mean log-probability of a completion's tokens, nats/token, `[prompts]`."""
        return self.sums / self.lengths

    @property
    def log_ratio(self) -> "Tensor":
        """log p(completion | prompt) / p_reference(completion | prompt) in nats, `[prompts]`.

        Raises:
            FtbenchError: there is no reference.
        """
        if self.reference is None:
            raise FtbenchError("this loss compares with a reference: train() must use training.with_reference()")
        return self.sums - self.reference


@dataclass(frozen=True)
class CompletionLogProbs:
    """What a loss is computed from: the log-probabilities of a micro-batch.

    A loss is the micro-batch's part of the effective batch's loss. `nll` and `mean` divide by the whole effective
    batch, so that parts add up to the same loss however the batch was cut.
    """

    chosen: SequenceLogProbs
    pair: SequenceLogProbs | None = None
    step_prompts: int | None = None
    """Prompts of the effective batch; None where the micro-batch is all of it."""
    step_tokens: int | None = None
    """Tokens of the effective batch's chosen completions."""

    @property
    def rejected(self) -> SequenceLogProbs:
        """Log-probabilities of the rejected completions.

        Raises:
            FtbenchError: the algorithm needs demonstrations only, so that there are none.
        """
        if self.pair is None:
            raise FtbenchError("this loss reads rejected completions: the algorithm must say needs = 'preferences'")
        return self.pair

    def nll(self) -> "Tensor":
        """Return the part of the chosen completions' mean negative log-likelihood over tokens, nats/token."""
        return -self.chosen.sums.sum() / (self.step_tokens or self.chosen.lengths.sum())

    def mean(self, values: "Tensor") -> "Tensor":
        """Return the part of a mean over prompts.

        Args:
            values: `[prompts]`, one for every prompt of the micro-batch.
        """
        return values.sum() / (self.step_prompts or len(values))


def completion_logprobs(
    model: "PreTrainedModel", batch: "Sequence[EncodedExample]", step: "Step | None" = None, *, packed: bool = True
) -> CompletionLogProbs:
    """Run the model over a micro-batch and return the log-probabilities of its completions, with their graph.

    Args:
        model: in any mode.
        batch: all with or all without a rejected completion, and a reference.
        step: that the micro-batch is part of; by default it is all of it.
        packed: see `sequence_logprobs`.
    """
    import torch

    sequences = [example.chosen for example in batch]
    rejected = [example.rejected for example in batch if example.rejected is not None]
    sums = sequence_logprobs(model, [*sequences, *rejected], packed=packed)
    lengths = torch.tensor([s.completion_length for s in [*sequences, *rejected]], device=sums.device)
    known = [example.reference for example in batch if example.reference is not None]
    reference = torch.tensor(known, device=sums.device).T if known else (None, None)  # [2, prompts]
    count = len(sequences)
    return CompletionLogProbs(
        SequenceLogProbs(sums[:count], lengths[:count], reference[0]),
        SequenceLogProbs(sums[count:], lengths[count:], reference[1]) if rejected else None,
        step.prompts if step else None,
        step.completion_tokens if step else None,
    )


def sequence_logprobs(
    model: "PreTrainedModel", sequences: "Sequence[TokenSequence]", *, packed: bool = True
) -> "Tensor":
    """Return log p(completion | prompt) of every sequence: float32, `[sequences]`, in nats.

    Args:
        model: in any mode.
        sequences: not empty.
        packed: one row without padding; otherwise a row each, for models that do not keep packed sequences apart.
    """
    import torch

    logits, targets = (_packed_logits if packed else _padded_logits)(model, sequences)
    token_logprobs = -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    owned = [index for index, sequence in enumerate(sequences) for _ in range(sequence.completion_length)]
    owners = torch.tensor(owned, device=logits.device)
    # Added up in float64: a preference is the small difference of large sums.
    sums = torch.zeros(len(sequences), dtype=torch.float64, device=logits.device)
    return sums.index_add(0, owners, token_logprobs.double()).float()


def _packed_logits(model: "PreTrainedModel", sequences: "Sequence[TokenSequence]") -> "tuple[Tensor, Tensor]":
    """Return logits `[completion tokens, vocabulary]` and the tokens that they predict, of all sequences in turn.

    The sequences stand one behind the other in a single row without padding, each with positions from 0; transformers
    then lets each attend within itself alone (tests hold this against padded rows). Only positions that predict a
    completion token reach the language-model head.
    """
    import torch

    device = model.device
    start = 0
    positions: list[int] = []
    predicting: list[int] = []
    for sequence in sequences:
        length = len(sequence.ids)
        positions.extend(range(length))
        predicting.extend(range(start + sequence.prompt_length - 1, start + length - 1))
        start += length
    ids = torch.tensor([token for sequence in sequences for token in sequence.ids], device=device)
    predicting_ids = torch.tensor(predicting, device=device)
    # No attention mask and no cache: either would make transformers forget where a sequence begins. A sequence alone
    # begins where the row does; told so, transformers makes no mask, which has a cell for every two tokens.
    several = {"position_ids": torch.tensor(positions, device=device)[None]} if len(sequences) > 1 else {}
    logits = model(input_ids=ids[None], use_cache=False, logits_to_keep=predicting_ids, **several).logits[0]
    return logits, ids[predicting_ids + 1]


def _padded_logits(model: "PreTrainedModel", sequences: "Sequence[TokenSequence]") -> "tuple[Tensor, Tensor]":
    """Return the same as `_packed_logits`, from rows that are padded on the right."""
    import torch

    device = model.device
    width = max(len(sequence.ids) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids, device=device)
        mask[row, : len(sequence.ids)] = 1
    # Counted from the end, for a model may put vectors of its own before each row.
    first = min(sequence.prompt_length for sequence in sequences) - 1
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=width - first).logits[:, -(width - first) :]
    spans = [(row, s.prompt_length, len(s.ids)) for row, s in enumerate(sequences)]
    return (
        torch.cat([logits[row, begin - 1 - first : end - 1 - first] for row, begin, end in spans]),
        torch.cat([ids[row, begin:end] for row, begin, end in spans]),
    )
