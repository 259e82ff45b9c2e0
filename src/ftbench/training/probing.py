"""What training takes in memory, seen on fake tensors: nothing is computed, and nothing of size allocated."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ftbench.memory.ledger import Ledger
from ftbench.memory.parts import Parts
from ftbench.memory.plan import UPDATE, Cut
from ftbench.training.batching import MicroBatch, Plan, Step, cut
from ftbench.training.logprobs import completion_logprobs, is_padded
from ftbench.training.reference import used_examples
from ftbench.training.sharding import deal, decoder_layers, gathered_weights
from ftbench.training.step import Loss, accumulate, set_checkpointing, trainable
from ftbench.training.trainer import Spent, Training
from ftbench.training.watch import counted, vocabulary
from ftbench.training.weight import heaviest_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ftbench.training.optimiser import MasterAdamW

FIRST, LAST = "backward, first layer", "backward, last layer"


@dataclass(frozen=True)
class Probe(Training):
    """A training that goes once through its heaviest step for each way to cut it, and keeps the peaks in `found`.

    To be handed to an algorithm's `train` with a model under FakeTensorMode. Peaks of moments are kept, not of the
    whole, because only within a moment is the peak a straight line in the number of layers: a backward pass ends high
    where gradients are large, and begins high where activations are.
    """

    cuts: tuple[Cut, ...] = ()
    found: dict[Cut, dict[str, Parts]] = field(default_factory=dict)
    accumulation: dict[Cut, int] = field(default_factory=dict)

    def run(
        self, loss: Loss, learning_rate: float | None = None, after_step: Callable[[int], None] | None = None
    ) -> Spent:
        """Probe the heaviest micro-batches of the stage."""
        from ftbench.models.shelf import Shelf
        from ftbench.training.optimiser import MasterAdamW

        parameters = trainable(self.model)
        optimiser = MasterAdamW(parameters, 0.0, 0.0)
        updated = self._update(optimiser, parameters)
        self.model.train()
        for way in self.cuts:
            set_checkpointing(self.model, way.checkpointing)
            batches, accumulation = heaviest(self.plan, way.micro_batch_tokens, self.ranks.count, padded=self._padded)
            step = Step(tuple(example for batch in batches for example in batch))
            self.accumulation[way] = max(accumulation, self.accumulation.get(way, 0))
            ledger, shelf = Ledger(vocabulary(self.model)), Shelf()
            with counted(ledger, self.model, optimiser.tensors), _layers(self.model, ledger):
                # A micro-batch that is a whole step finds no gradients; of several, each does but the first. What
                # activations were kept in is there from the second on, while another forward pass is at its highest.
                again = [*batches, batches[0]]
                for some in [again] if accumulation > 1 else [[batch] for batch in again]:
                    optimiser.zero_grad()
                    accumulate(self.model, step, some, loss, packed=self.packed, moment=ledger.moment, shelf=shelf)
            optimiser.zero_grad()
            # What activations were kept in is still there.
            beside = replace(updated, activations=updated.activations + shelf.nbytes)
            self._keep(way, {**ledger.peaks, UPDATE: beside})
        self.model.eval()
        return Spent(sum(step.tokens for step in self.plan.steps), 0.0)

    def with_reference(self) -> Training:
        """Probe the scoring of the reference, which is then known."""
        import torch

        self.model.eval()
        for way in self.cuts:
            batches = heaviest_of(cut(used_examples(self.plan), way.micro_batch_tokens), padded=self._padded)
            ledger = Ledger(vocabulary(self.model))
            ledger.claim("parameters", self.model.parameters())
            ledger.follow("parameters", gathered_weights(self.model))
            with ledger, torch.no_grad(), ledger.moment("reference"):
                for batch in batches:
                    completion_logprobs(self.model, batch, packed=self.packed)
            self._keep(way, ledger.peaks)
        examples = tuple(replace(example, reference=(0.0, 0.0)) for example in self.plan.examples)
        return replace(self, plan=replace(self.plan, examples=examples))

    @property
    def _padded(self) -> bool:
        return is_padded(self.model, packed=self.packed)

    def _update(self, optimiser: "MasterAdamW", parameters: "list[torch.nn.Parameter]") -> Parts:
        """Return what is there while weights are updated, which is the same however a step is cut.

        What the update takes beside is no straight line in the number of layers, and is left out (`update_bytes`).
        """
        import torch

        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter.detach())
        ledger = Ledger()
        with counted(ledger, self.model, optimiser.tensors):
            kept = ledger.now
        optimiser.zero_grad()
        return kept

    def _keep(self, way: Cut, found: Mapping[str, Parts]) -> None:
        peaks = self.found.setdefault(way, {})
        for moment, parts in found.items():
            name = f"{self.stage}: {moment}"
            peaks[name] = max(parts, peaks.get(name, Parts()), key=lambda each: each.total)


def heaviest(
    plan: Plan, micro_batch_tokens: int, ranks: int = 1, *, padded: bool = False
) -> tuple[list[MicroBatch], int]:
    """Return the heaviest micro-batches of a plan, and the most that a step takes, of each rank."""
    if ranks == 1:
        steps = [cut(step.examples, micro_batch_tokens) for step in plan.steps]
    else:
        steps = [share for step in plan.steps for share in deal(step.examples, micro_batch_tokens, ranks)]
    return heaviest_of([batch for step in steps for batch in step], padded=padded), max(map(len, steps))


@contextmanager
def _layers(model: "PreTrainedModel", ledger: Ledger) -> Iterator[None]:
    """Begin a moment when the backward pass comes to the last layer, and another when it comes to the first."""
    layers = decoder_layers(model)

    def watch(name: str | None) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _: ledger.begin(name))

        return hook

    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            name = FIRST if index == 0 else LAST if index == len(layers) - 1 else None
            stack.callback(layer.register_forward_hook(watch(name)).remove)
        yield
