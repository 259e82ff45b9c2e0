"""A finished run's model once more, as its evaluation had it: for chat, serving and export."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftbench.algorithm import Algorithm
from ftbench.errors import UsageError
from ftbench.execution.environment import changed_versions, choose_device
from ftbench.execution.starting import find_start, load_from
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_model, load_tokenizer
from ftbench.models.precision import Precision, choose_precision
from ftbench.models.resolve import resolve_model
from ftbench.registry import Registry
from ftbench.results.mirror import with_weights
from ftbench.results.result import Result
from ftbench.results.store import MODEL, Run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LoadFolder = Callable[[Path, "torch.device", Precision], "PreTrainedModel"]


@dataclass(frozen=True)
class Reloaded:
    """A run's model and the format that it was asked in; `packed` as its algorithm has it, `digest` the base model's.

    `changed` has a line for each thing that is not as it was, so that replies may differ from those recorded.
    """

    run: Run
    model: "PreTrainedModel"
    chat: ChatFormat
    packed: bool
    precision: Precision
    digest: str
    changed: list[str]


def check_servable(run: Run, registry: Registry) -> Algorithm:
    """See that a run has a model to be asked, before anything is loaded.

    Raises:
        UsageError: it did not end well, its model is gone, or its algorithm is not installed.
        FtbenchError: its model is at a URL, and cannot be fetched.
    """
    result, name = run.result, run.folder.name
    if result.status != "ok":
        raise UsageError(f"run {name} is {result.status} and left no model; choose one that is ok (ftbench table)")
    algorithm = registry.make(result.recipe.algorithm, result.recipe.options)
    if algorithm.needs != "nothing" and not (with_weights(run.folder) / MODEL).is_dir():
        raise UsageError(
            f"run {name} holds no saved model ({run.folder / MODEL} is missing); run it again with --fresh"
        )
    return algorithm


def reload_run(run: Run, registry: Registry, load_folder: LoadFolder = load_model) -> Reloaded:
    """Load what a run's evaluation asked: the same weights, precision, chat format and system prompt.

    Args:
        run: one that ended well.
        registry: to read the model with.
        load_folder: `load_model` for ftbench's own layers, `load_plain` for transformers' own.

    Raises:
        UsageError: as `check_servable` does, or the run was made on a device that is not here.
        FtbenchError: the base model or the run's own cannot be read.
    """
    algorithm = check_servable(run, registry)
    result, recipe = run.result, run.result.recipe
    device = choose_device(recipe.device)
    files = resolve_model(recipe.model, recipe.revision, registry.models)
    precision = _precision_of(result) or choose_precision(recipe.precision, device)
    start = find_start(recipe, registry, run.folder.parent)

    def load_base(folder: Path | None) -> "PreTrainedModel":
        return load_folder(folder or files.folder, device, precision)

    load = load_from(start, load_base)
    model = load(None) if algorithm.needs == "nothing" else algorithm.load(run.folder / MODEL, load)
    model.eval()
    chat = ChatFormat(load_tokenizer(files.folder), result.system_prompt)
    return Reloaded(run, model, chat, algorithm.packed, precision, files.digest, _changes(result, files.digest))


def _precision_of(result: Result) -> Precision | None:
    recorded = result.environment.precision if result.environment else None
    return "bf16" if recorded == "bf16" else "float32" if recorded == "float32" else None


def _changes(result: Result, digest: str) -> list[str]:
    lines = []
    if result.model_digest not in (None, digest):
        lines.append(f"the files of the model {result.recipe.model} are not those that the run had")
    if result.environment:
        versions = changed_versions(result.environment.versions, result.plugin)
        if versions:
            lines.append(f"other versions than the run's: {', '.join(versions)}")
    return lines
