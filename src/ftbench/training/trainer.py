"""The training loop."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate as running_sums
from typing import TYPE_CHECKING

from ftbench.errors import ContractError, FtbenchError
from ftbench.memory.fit import Fit, free_memory, is_out_of_memory
from ftbench.training.batching import MicroBatch, Plan, Step, batch_tokens, cut
from ftbench.training.clock import Clock
from ftbench.training.idle import Idle
from ftbench.training.keeping import Keeper
from ftbench.training.logprobs import CompletionLogProbs, is_padded
from ftbench.training.reference import add_reference, take_reference
from ftbench.training.sharding import Ranks, deal
from ftbench.training.sharing import Share
from ftbench.training.statefile import Done
from ftbench.training.step import Loss, Moment, accumulate, can_checkpoint, set_checkpointing, trainable
from ftbench.training.watch import StepWatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ftbench.models.shelf import Shelf
    from ftbench.training.optimiser import MasterAdamW


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did. Tokens are real tokens, sequences are completions behind their prompts."""

    stage: str
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    sequences: int
    prompts: int


@dataclass(frozen=True)
class Spent:
    """What a stage took: real tokens and seconds."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW (Loshchilov and Hutter 2019) with warm-up and cosine decay; all but the learning rate are the recipe's."""

    learning_rate: float
    weight_decay: float
    warmup: float
    max_grad_norm: float


@dataclass(frozen=True)
class Training:
    """What an algorithm's `train` is handed: the adapted model, what it is trained on, and where to report.

    `fit` says how a step is cut into micro-batches; `watch` counts the tensors of the heaviest ones. `start` names the
    run whose model training starts from, None for the base model. `packed` is the algorithm's. An algorithm with a
    trainer of its own goes through `plan.steps`, follows `rate`, and calls `note` after each step. `clock` tells the
    time that training has taken; it stands still while `note` has the model asked. `idle` knows what had no gradient,
    `keeper` keeps the shared loop's state on disk. `ranks` are the processes over which the model is spread. With
    `share`, what the reference finds is taken from another run that found the same.

    The same seed must give the same model: what is drawn, draw from torch's generator or from one of your own, seeded
    with `plan.seed`. A training that was killed goes on from its parameters and the optimiser's state, and must end as
    an unbroken one: between steps, nothing else may be remembered, except by who trains with an `after_step`.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    plan: Plan
    fit: Fit
    settings: OptimiserSettings
    report: Callable[[StepReport], None]
    start: str | None = None
    packed: bool = True
    stage: str = "train"
    watch: StepWatch = field(default_factory=StepWatch)
    clock: Clock = field(default_factory=Clock)
    keeper: Keeper = field(default_factory=Keeper)
    idle: Idle = field(default_factory=Idle)
    ranks: Ranks = field(default_factory=Ranks)
    share: Share | None = None

    def split(self, share: float) -> "tuple[Training, Training]":
        """Cut the budget of tokens (and seconds) into a share and the rest, to be trained one after the other."""
        first, rest = self.plan.split(share)
        return replace(self, plan=first), replace(self, plan=rest)

    def demonstrations(self, stage: str) -> "Training":
        """Train on the chosen completions alone, under a stage's name of its own."""
        return replace(self, plan=self.plan.demonstrations(), stage=stage)

    def supervised_first(self, share: float, learning_rate: float) -> "Training":
        """Spend a share of the budget on the chosen completions, unless training starts from a run; return the rest.

        A preference loss compares completions that the model could give; an untouched model gives none of the chosen.
        """
        if self.start is not None or share == 0:
            return self
        first, rest = self.split(share)
        spent = first.demonstrations("supervised").run(CompletionLogProbs.nll, learning_rate)
        tokens = max(1, self.plan.tokens - spent.tokens)
        seconds = None if self.plan.seconds is None else max(0.0, self.plan.seconds - spent.seconds)
        return replace(rest, plan=replace(rest.plan, tokens=tokens, seconds=seconds))

    def with_reference(self) -> "Training":
        """Take the model as it stands for the reference: score all planned examples now, once."""
        done = self.keeper.enter()
        if done is not None and done.references is not None:
            return replace(self, plan=take_reference(self.model, self.plan, done.references, done.seconds))
        size = self.fit.micro_batch_tokens
        plan = add_reference(
            self.model,
            self.plan,
            size,
            packed=self.packed,
            watch=self.watch,
            ranks=self.ranks,
            share=self.share,
            clock=self.clock,
        )
        known = {replace(example, reference=None): example.reference for example in plan.examples}
        references = [known.get(example) for example in self.plan.examples]
        self.keeper.leave(Done(references=references, seconds=(self.plan.seconds or 0.0) - (plan.seconds or 0.0)))
        return replace(self, plan=plan)

    def rate(self, step: int, seconds: float) -> float:
        """Return the share of the learning rate: a line up to 1, then half a cosine down to a tenth.

        Args:
            step: index in `plan.steps`.
            seconds: that training has taken before this step; they count under a time limit.
        """
        before, after = self._tokens[step] / self._tokens[-1], self._tokens[step + 1] / self._tokens[-1]
        if self.plan.seconds is not None:
            passed = min(1.0, seconds / self.plan.seconds) if self.plan.seconds else 1.0
            before, after = max(before, passed), max(after, passed)
        return rate_share(before, after, self.settings.warmup)

    def note(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Report that a step was done.

        Args:
            step: index in `plan.steps`.
            loss: mean over the effective batch.
            grad_norm: before clipping.
            learning_rate: of this step.

        Raises:
            FtbenchError: the loss is no longer finite.
        """
        self._check(step, loss, grad_norm)
        done = self.plan.steps[step]
        self.report(StepReport(self.stage, loss, grad_norm, learning_rate, done.tokens, done.sequences, done.prompts))

    def run(
        self, loss: Loss, learning_rate: float | None = None, after_step: Callable[[int], None] | None = None
    ) -> Spent:
        """Train with the shared loop.

        Args:
            loss: the micro-batch's part of the effective batch's loss: see `CompletionLogProbs`.
            learning_rate: the highest of the stage; by default the algorithm's.
            after_step: called with the number of steps done, after the optimiser's step and before gradients are gone.

        Returns:
            What it took, which is a little more than planned: every step is whole.

        Raises:
            FtbenchError: the loss is no longer finite.
            ContractError: nothing is trainable, or the loss is no scalar that hangs on it.
        """
        from ftbench.models.shelf import Shelf
        from ftbench.training.optimiser import MasterAdamW, clip

        parameters = trainable(self.model)
        if not parameters:
            raise ContractError("no parameter is left trainable: set requires_grad on what is to be trained", "adapt")
        self.keeper.note_trained(parameters)
        done = self.keeper.enter()
        if done is not None:
            return Spent(done.tokens, done.seconds)
        highest = self.settings.learning_rate if learning_rate is None else learning_rate
        optimiser, shelf = MasterAdamW(parameters, highest, self.settings.weight_decay), Shelf()
        self.model.train()
        cuts = [self._cut(step) for step in self.plan.steps]
        padded = is_padded(self.model, packed=self.packed)
        self.watch.expect(self.stage, cuts, limited=self.plan.seconds is not None, padded=padded)
        point = self.keeper.take_up(self, optimiser)
        start, tokens = self.clock() - point.seconds, point.tokens
        for index, step in enumerate(self.plan.steps):
            if index < point.steps:
                continue
            seconds = self.clock() - start
            if self.plan.seconds is not None and index and seconds >= self.plan.seconds:
                break
            rate = highest * self.rate(index, seconds)
            optimiser.set_learning_rate(rate)
            with self.watch.step(self.stage, index, self.model, optimiser.tensors) as moment:
                total, norm = self._gradients(index, loss, optimiser, shelf, moment)
                self._check(index, total, norm)  # before a weight changes
                self.idle.look(self.model)
                with moment("update"):
                    optimiser.step(clip(norm, self.settings.max_grad_norm))
            if after_step:
                after_step(index + 1)
            optimiser.zero_grad()
            self.note(index, total, norm, rate)
            tokens += step.tokens
            if not after_step:  # whose own state nobody knows
                self.keeper.keep(self, optimiser, index + 1, tokens, start)
        self.model.eval()
        spent = Spent(tokens, self.clock() - start)
        self.keeper.leave(Done(tokens=spent.tokens, seconds=spent.seconds))
        return spent

    def _gradients(
        self, index: int, loss: Loss, optimiser: "MasterAdamW", shelf: "Shelf", moment: Moment
    ) -> tuple[float, float]:
        """Fill in the gradients of a step, in smaller pieces if memory runs out; return the loss and their norm."""
        step = self.plan.steps[index]
        while True:
            batches = self._cut(step)
            set_checkpointing(self.model, self.fit.checkpointing)
            try:
                total = accumulate(self.model, step, batches, loss, packed=self.packed, moment=moment, shelf=shelf)
                return self.ranks.total(total).item(), self.ranks.norm(optimiser.gradient_norm()).item()
            except Exception as error:
                sizes = [(len(batch), batch_tokens(batch)) for batch in batches]
                if not is_out_of_memory(error) or self.ranks.count > 1:  # the others wait in the middle of the step
                    raise
                if not self.fit.reduce(self.stage, index, sizes, can_checkpoint=can_checkpoint(self.model)):
                    raise
            # Not in the handler: until it ends, the error holds the frames, and these the tensors.
            self.model.zero_grad()
            shelf.clear()
            free_memory()

    def _cut(self, step: Step) -> list[MicroBatch]:
        """Cut a step as the fit says; of several ranks, each has a part of its own."""
        if self.ranks.count == 1:
            return cut(step.examples, self.fit.micro_batch_tokens)
        return deal(step.examples, self.fit.micro_batch_tokens, self.ranks.count)[self.ranks.index]

    def _check(self, step: int, loss: float, grad_norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise FtbenchError(
                f"the loss is no longer finite at step {step + 1} of stage '{self.stage}'; try a lower learning rate"
            )

    @cached_property
    def _tokens(self) -> tuple[int, ...]:
        """Real tokens before each step, and after the last."""
        return (0, *running_sums(step.tokens for step in self.plan.steps))


def rate_share(before: float, after: float, warmup: float) -> float:
    """Return the share of the learning rate: a line up to 1, then half a cosine down to a tenth.

    Args:
        before: share of the training that is done before the step.
        after: and after it.
        warmup: share at whose end the line is at 1.
    """
    if before < warmup:
        return min(1.0, after / warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (before - warmup) / max(1 - warmup, 1e-9)))
