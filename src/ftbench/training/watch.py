"""Counts the tensors of a step."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ftbench.memory.parts import Parts
from ftbench.training.batching import MicroBatch
from ftbench.training.step import Moment, unwatched

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftbench.memory.ledger import Ledger


class StepWatch:
    """Counts the tensors of the heaviest steps, by stage; `peaks` has the highest point of each.

    Counting takes time, so that not all steps are counted: only the first and those with a heavier micro-batch than any
    before, the first aside, because there is no optimiser state until its end.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, Parts] = {}
        self._heaviest: dict[str, tuple[int, int]] = {}

    @contextmanager
    def step(
        self,
        stage: str,
        index: int,
        micro_batches: Sequence[MicroBatch],
        model: "PreTrainedModel",
        kept: "Iterable[torch.Tensor]" = (),
    ) -> Iterator[Moment]:
        """Count what happens inside, if it is worth it; what was counted is kept when it raises, too.

        Args:
            stage: of the training.
            index: of the step in the stage.
            micro_batches: of the step.
            model: with its parameters.
            kept: what the optimiser keeps from step to step.

        Yields:
            What opens the step's moments.
        """
        tokens = max(sum(example.tokens for example in batch) for batch in micro_batches)
        completion = max(sum(example.completion_tokens for example in batch) for batch in micro_batches)
        most_tokens, most_completion = self._heaviest.get(stage, (0, 0))
        if index and tokens <= most_tokens and completion <= most_completion:
            yield unwatched
            return
        from ftbench.memory.ledger import Ledger

        if index:
            self._heaviest[stage] = max(tokens, most_tokens), max(completion, most_completion)
        ledger = Ledger(vocabulary(model))
        ledger.claim_rest("activations")
        try:
            with counted(ledger, model, kept):
                yield ledger.moment
        finally:
            found = [*ledger.peaks.values(), self.peaks.get(stage, Parts())]
            self.peaks[stage] = max(found, key=lambda parts: parts.total)


@contextmanager
def counted(ledger: "Ledger", model: "PreTrainedModel", kept: "Iterable[torch.Tensor]") -> Iterator[None]:
    """Open the ledger with what the model holds and the optimiser keeps; tell it what is a gradient as they come."""
    parameters = list(model.parameters())
    ledger.claim("parameters", parameters)
    ledger.claim("gradients", (parameter.grad for parameter in parameters))
    ledger.claim("optimiser", kept)

    def claim_gradient(parameter: "torch.Tensor") -> None:
        ledger.claim("gradients", [parameter.grad])

    hooks = [
        parameter.register_post_accumulate_grad_hook(claim_gradient)
        for parameter in parameters
        if parameter.requires_grad
    ]
    try:
        with ledger:
            yield
    finally:
        for hook in hooks:
            hook.remove()


def vocabulary(model: "PreTrainedModel") -> int | None:
    """The size of the model's vocabulary: the last dimension of its logits."""
    return getattr(model.config.get_text_config(), "vocab_size", None)
