"""Methods that shift their budget of parameters between layers while they train: AdaLoRA, and AdaMSS where asked."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ftbench
from ftbench_peft.methods import kind_of

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[[ftbench.CompletionLogProbs], "Tensor"]

WARM_UP, FINAL = 0.1, 0.1
"""Shares of the steps before AdaLoRA begins to prune, and after it has ended; the paper has about as many."""


def follow(training: ftbench.Training, loss: Loss) -> tuple[Loss, Callable[[int], None] | None]:
    """Return the loss with what the method adds to it, and what the method does after each step, if anything."""
    model: Any = training.model
    inner = model.base_model
    if not hasattr(inner, "update_and_allocate"):
        return loss, None
    config = model.peft_config[model.active_adapter]
    if kind_of(config) != "ADALORA":
        return loss, inner.update_and_allocate
    if training.plan.seconds is not None:
        raise ftbench.Skip("AdaLoRA prunes by a schedule of steps, and under a time limit nobody knows their number")
    steps = len(training.plan.steps)
    config.total_step, config.tinit, config.tfinal = steps, round(WARM_UP * steps), round(FINAL * steps)

    def regularised(logprobs: ftbench.CompletionLogProbs) -> "Tensor":
        import torch

        share = logprobs.mean(torch.ones_like(logprobs.chosen.sums))  # of the effective batch
        penalty: Tensor = share * config.orth_reg_weight * _orthogonality(inner)
        return loss(logprobs) + penalty

    return regularised, inner.update_and_allocate


def _orthogonality(model: Any) -> "Tensor":
    """Mean over A and B of ||P P^T - I||, which AdaLoRA adds (Zhang et al. 2023, arXiv:2303.10512, equation 4)."""
    import torch

    norms = []
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
    return torch.stack(norms).mean()
