"""The training loop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from ftbench.errors import FtbenchError
from ftbench.training.batching import MicroBatch, Step
from ftbench.training.logprobs import CompletionLogProbs, completion_logprobs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Loss = Callable[[CompletionLogProbs], "Tensor"]
Weight = Callable[[MicroBatch], float]


@dataclass(frozen=True)
class StepReport:
    """What one optimiser step did. Tokens are real tokens so far, seconds those of training so far."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    prompts: int
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
    """What an algorithm's `train` is handed: the adapted model, the planned steps, and where to report.

    An algorithm with a trainer of its own reads `steps`, `settings` and `model`, and calls `report` after each step.
    """

    model: "PreTrainedModel"
    steps: Sequence[Step]
    settings: OptimiserSettings
    report: Callable[[StepReport], None]

    def run(self, loss: Loss, weight: Weight) -> None:
        """Train with the shared loop.

        Args:
            loss: scalar mean over a micro-batch.
            weight: how much of the effective batch a micro-batch is, in the unit that `loss` averages over (tokens or
                prompts): the step's loss is then the mean over the effective batch, however it was cut.

        Raises:
            FtbenchError: the loss is no longer finite, or nothing is trainable.
        """
        import torch

        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not parameters:
            raise FtbenchError("the algorithm leaves no parameter trainable; its adapt() must")
        optimiser = torch.optim.AdamW(
            parameters, lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay, fused=True
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._rate)
        self.model.train()
        tokens = prompts = 0
        start = perf_counter()
        for number, step in enumerate(self.steps, start=1):
            weights = [weight(batch) for batch in step.micro_batches]
            total = 0.0
            for batch, share in zip(step.micro_batches, weights, strict=True):
                value = loss(completion_logprobs(self.model, batch)) * (share / sum(weights))
                value.backward()
                total += value.item()
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm).item()
            if not (math.isfinite(total) and math.isfinite(norm)):
                raise FtbenchError(f"the loss is no longer finite at step {number}; try a lower learning rate")
            rate = float(schedule.get_last_lr()[0])
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            tokens += step.tokens
            prompts += step.prompts
            self.report(StepReport(number, total, norm, rate, tokens, prompts, perf_counter() - start))
        self.model.eval()

    def _rate(self, step: int) -> float:
        """Share of the learning rate at a step: a line up, then half a cosine down to a tenth."""
        warmup = max(1, round(self.settings.warmup * len(self.steps)))
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, len(self.steps) - warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))
