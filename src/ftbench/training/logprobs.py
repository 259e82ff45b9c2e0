"""Log-probabilities of completions: one code path for every algorithm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ftbench.errors import ContractError
from ftbench.models.attention import is_packed
from ftbench.models.packing import pack
from ftbench.training.row import lay_out

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
            ContractError: there is no reference.
        """
        if self.reference is None:
            raise ContractError("this loss compares with a reference: train() must use training.with_reference()")
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
            ContractError: the algorithm needs demonstrations only, so that there are none.
        """
        if self.pair is None:
            raise ContractError("this loss reads rejected completions: the algorithm must say needs = 'preferences'")
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


def is_padded(model: "PreTrainedModel", *, packed: bool) -> bool:
    """Whether each sequence has a row of its own: it is asked for, or the model lacks our attention."""
    return not (packed and is_packed(model))


def sequence_logprobs(
    model: "PreTrainedModel", sequences: "Sequence[TokenSequence]", *, packed: bool = True
) -> "Tensor":
    """Return log p(completion | prompt) of every sequence: float32, `[sequences]`, in nats.

    Args:
        model: in any mode.
        sequences: not empty.
        packed: one row without padding, where the model has our attention; otherwise a row each, for models that do
            not keep packed sequences apart.
    """
    import torch

    scores = (_padded_scores if is_padded(model, packed=packed) else _packed_scores)(model, sequences)
    owned = [index for index, sequence in enumerate(sequences) for _ in range(sequence.completion_length)]
    owners = torch.tensor(owned, device=scores.device)
    # Added up in float64: a preference is the small difference of large sums.
    sums = torch.zeros(len(sequences), dtype=torch.float64, device=scores.device)
    return sums.index_add(0, owners, scores.double()).float()


def _packed_scores(model: "PreTrainedModel", sequences: "Sequence[TokenSequence]") -> "Tensor":
    """Return the log-probabilities of the completions' tokens in turn, float32, `[completion tokens]`.

    The sequences stand in a single row without padding, each with positions from 0, and each attends within itself
    alone (tests hold this against padded rows). Only positions that predict a completion token reach the language-model
    head.
    """
    import torch

    from ftbench.models.head import ScoringHead

    row = lay_out(sequences)
    ids, kept, targets = (torch.tensor(each, device=model.device) for each in (row.ids, row.predicting, row.targets))
    inputs = {"input_ids": ids[None], "logits_to_keep": kept, "use_cache": False, **pack(row.blocks, model.device)}
    head = model.get_output_embeddings()
    if isinstance(head, ScoringHead):
        with head.scoring(targets):
            scores: Tensor = model(**inputs).logits[0]
    else:
        scores = _of_targets(model(**inputs).logits[0], targets)
    return scores[: row.scores]


def _of_targets(logits: "Tensor", targets: "Tensor") -> "Tensor":
    """Return the log-probability of each target, float32."""
    import torch

    return -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def _padded_scores(model: "PreTrainedModel", sequences: "Sequence[TokenSequence]") -> "Tensor":
    """Return the same as `_packed_scores`, from rows that are padded on the right."""
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
    return _of_targets(
        torch.cat([logits[row, begin - 1 - first : end - 1 - first] for row, begin, end in spans]),
        torch.cat([ids[row, begin:end] for row, begin, end in spans]),
    )
