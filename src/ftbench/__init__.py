"""What the author of a plugin imports, and nothing else."""

from typing import TYPE_CHECKING, Any

from ftbench.algorithm import Algorithm, AlgorithmConfig
from ftbench.hookspecs import hookimpl
from ftbench.recipe import Recipe

if TYPE_CHECKING:
    from ftbench.training.logprobs import CompletionLogProbs
    from ftbench.training.trainer import StepReport, Training

__all__ = ["Algorithm", "AlgorithmConfig", "CompletionLogProbs", "Recipe", "StepReport", "Training", "hookimpl"]


def __getattr__(name: str) -> Any:
    # Only annotations need these; importing them here would slow every command down.
    if name == "CompletionLogProbs":
        from ftbench.training.logprobs import CompletionLogProbs

        return CompletionLogProbs
    if name in ("StepReport", "Training"):
        from ftbench.training import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module 'ftbench' has no attribute '{name}'")
