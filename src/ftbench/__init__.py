"""What the author of a plugin imports, and nothing else."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftbench.algorithm import AdapterConfig, Algorithm, AlgorithmConfig, ThenConfig
    from ftbench.data.sources import DataSource
    from ftbench.data.task import Example, HeldOut, Task, TaskData, ordinary_replies, split_examples
    from ftbench.errors import Skip, UsageError, nearest
    from ftbench.evaluation.judge import Gold, Judge, best_threshold
    from ftbench.hookspecs import hookimpl
    from ftbench.models.loading import check_adapter
    from ftbench.models.resolve import ModelSource
    from ftbench.recipe import Recipe
    from ftbench.results.report.section import ReportChart, ReportSection, ReportTable
    from ftbench.results.store import Run
    from ftbench.training.encoding import TokenSequence
    from ftbench.training.logprobs import CompletionLogProbs, SequenceLogProbs
    from ftbench.training.trainer import StepReport, Training

__all__ = [
    "AdapterConfig",
    "Algorithm",
    "AlgorithmConfig",
    "CompletionLogProbs",
    "DataSource",
    "Example",
    "Gold",
    "HeldOut",
    "Judge",
    "ModelSource",
    "Recipe",
    "ReportChart",
    "ReportSection",
    "ReportTable",
    "Run",
    "SequenceLogProbs",
    "Skip",
    "StepReport",
    "Task",
    "TaskData",
    "ThenConfig",
    "TokenSequence",
    "Training",
    "UsageError",
    "best_threshold",
    "check_adapter",
    "hookimpl",
    "nearest",
    "ordinary_replies",
    "split_examples",
]

# Imported when they are first asked for: `ftbench --help` needs none of them.
_HOMES = {
    "AdapterConfig": "ftbench.algorithm",
    "Algorithm": "ftbench.algorithm",
    "AlgorithmConfig": "ftbench.algorithm",
    "CompletionLogProbs": "ftbench.training.logprobs",
    "DataSource": "ftbench.data.sources",
    "Example": "ftbench.data.task",
    "Gold": "ftbench.evaluation.judge",
    "HeldOut": "ftbench.data.task",
    "Judge": "ftbench.evaluation.judge",
    "ModelSource": "ftbench.models.resolve",
    "Recipe": "ftbench.recipe",
    "ReportChart": "ftbench.results.report.section",
    "ReportSection": "ftbench.results.report.section",
    "ReportTable": "ftbench.results.report.section",
    "Run": "ftbench.results.store",
    "SequenceLogProbs": "ftbench.training.logprobs",
    "Skip": "ftbench.errors",
    "StepReport": "ftbench.training.trainer",
    "Task": "ftbench.data.task",
    "TaskData": "ftbench.data.task",
    "ThenConfig": "ftbench.algorithm",
    "TokenSequence": "ftbench.training.encoding",
    "Training": "ftbench.training.trainer",
    "UsageError": "ftbench.errors",
    "best_threshold": "ftbench.evaluation.judge",
    "check_adapter": "ftbench.models.loading",
    "hookimpl": "ftbench.hookspecs",
    "nearest": "ftbench.errors",
    "ordinary_replies": "ftbench.data.task",
    "split_examples": "ftbench.data.task",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ftbench' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
