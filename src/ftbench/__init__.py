"""What the author of a plugin imports, and nothing else."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftbench.algorithm import AdapterConfig, Algorithm, AlgorithmConfig, ThenConfig
    from ftbench.errors import Skip, UsageError, nearest
    from ftbench.evaluation.judge import Gold, Judge, best_threshold
    from ftbench.hookspecs import hookimpl
    from ftbench.recipe import Recipe
    from ftbench.training.logprobs import CompletionLogProbs
    from ftbench.training.trainer import StepReport, Training

__all__ = [
    "AdapterConfig",
    "Algorithm",
    "AlgorithmConfig",
    "CompletionLogProbs",
    "Gold",
    "Judge",
    "Recipe",
    "Skip",
    "StepReport",
    "ThenConfig",
    "Training",
    "UsageError",
    "best_threshold",
    "hookimpl",
    "nearest",
]

# Imported when they are first asked for: `ftbench --help` needs none of them.
_HOMES = {
    "AdapterConfig": "ftbench.algorithm",
    "Algorithm": "ftbench.algorithm",
    "AlgorithmConfig": "ftbench.algorithm",
    "CompletionLogProbs": "ftbench.training.logprobs",
    "Gold": "ftbench.evaluation.judge",
    "Judge": "ftbench.evaluation.judge",
    "Recipe": "ftbench.recipe",
    "Skip": "ftbench.errors",
    "StepReport": "ftbench.training.trainer",
    "ThenConfig": "ftbench.algorithm",
    "Training": "ftbench.training.trainer",
    "UsageError": "ftbench.errors",
    "best_threshold": "ftbench.evaluation.judge",
    "nearest": "ftbench.errors",
    "hookimpl": "ftbench.hookspecs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ftbench' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
