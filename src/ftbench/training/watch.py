"""Counts the tensors of a step."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ftbench.memory.parts import Parts
from ftbench.training.batching import MicroBatch
from ftbench.training.sharding import gathered_weights
from ftbench.training.step import Moment, unwatched
from ftbench.training.weight import weigh

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftbench.memory.ledger import Ledger


class StepWatch:
    """Counts the tensors of the heaviest steps, by stage; `peaks` has the highest point of each.

    Counting doubles a step's time, so that few are counted: which ones is known before the first.
    """

    def __init__(self, *, from_start: bool = False) -> None:
        """`from_start` says that the first step is counted, too: where it may be the last one."""
        self.peaks: dict[str, Parts] = {}
        self._from_start = from_start
        self._worth: dict[str, frozenset[int]] = {}

    def expect(self, stage: str, steps: Sequence[Sequence[MicroBatch]], *, limited: bool, padded: bool = False) -> None:
        """Choose which steps of a stage to count.

        Args:
            stage: of the training.
            steps: the micro-batches of each.
            limited: whether time may end the stage before its last step.
            padded: whether each sequence has a row of its own.
        """
        worth = worth_counting(steps, limited=limited, padded=padded)
        self._worth[stage] = worth | ({0} if self._from_start else frozenset())

    @contextmanager
    def step(
        self, stage: str, index: int, model: "PreTrainedModel", kept: "Iterable[torch.Tensor]" = ()
    ) -> Iterator[Moment]:
        """Count what happens inside, if it is worth it; what was counted is kept when it raises, too.

        Args:
            stage: of the training; one that was not expected is not counted.
            index: of the step in the stage.
            model: with its parameters.
            kept: what the optimiser keeps from step to step.

        Yields:
            What opens the step's moments.
        """
        if index not in self._worth.get(stage, ()):
            yield unwatched
            return
        from ftbench.memory.ledger import Ledger

        ledger = Ledger(vocabulary(model))
        ledger.claim_rest("activations")
        try:
            with counted(ledger, model, kept):
                yield ledger.moment
        finally:
            found = [*ledger.peaks.values(), self.peaks.get(stage, Parts())]
            self.peaks[stage] = max(found, key=lambda parts: parts.total)


def worth_counting(steps: Sequence[Sequence[MicroBatch]], *, limited: bool, padded: bool = False) -> frozenset[int]:
    """Return the steps that hold the heaviest micro-batches, by all that they are weighed by, and one early step.

    The very first is aside where there are others, for there is no optimiser state until its end. The early one is for
    a stage that does not come to its end; where time may end it, every step is counted that is heavier than all before.
    """
    chosen: set[int] = set()
    first = min(1, len(steps) - 1)
    weights = [[weigh(batch, padded=padded) for batch in batches] for batches in steps[first:]]
    for kind in range(len(weights[0][0])):
        records: list[int] = []
        most = -1
        for index, batches in enumerate(weights, first):
            weight = max(batch[kind] for batch in batches)
            if weight > most:
                records.append(index)
                most = weight
        chosen |= {*records} if limited else {records[0], records[-1]}
    return frozenset(chosen)


@contextmanager
def counted(ledger: "Ledger", model: "PreTrainedModel", kept: "Iterable[torch.Tensor]") -> Iterator[None]:
    """Open the ledger with what the model holds and the optimiser keeps; tell it what is a gradient as they come."""
    from ftbench.models.vocabulary import switches

    parameters = list(model.parameters())
    gathered = gathered_weights(model)
    ledger.claim("parameters", parameters)
    ledger.follow("parameters", gathered)
    ledger.claim("gradients", (parameter.grad for parameter in parameters))
    ledger.claim("optimiser", kept)

    def claim_gradient(parameter: "torch.Tensor") -> None:
        ledger.claim("gradients", [parameter.grad])

    hooks = [
        parameter.register_post_accumulate_grad_hook(claim_gradient)
        for parameter in [*parameters, *gathered]
        if parameter.requires_grad
    ]
    added = switches(model)
    for one in added:
        one.told = claim_gradient
    try:
        with ledger:
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for one in added:
            one.told = None


def vocabulary(model: "PreTrainedModel") -> int | None:
    """The size of the model's vocabulary: the last dimension of its logits."""
    return getattr(model.config.get_text_config(), "vocab_size", None)
