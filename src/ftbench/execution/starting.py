"""The run whose model a training starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftbench.algorithm import Algorithm
from ftbench.errors import UsageError
from ftbench.plugins import Registry
from ftbench.recipe import Recipe
from ftbench.results.result import StartFacts
from ftbench.results.store import MODEL, Run, read_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LoadBase = Callable[[Path | None], "PreTrainedModel"]


@dataclass(frozen=True)
class Start:
    """A finished run, the algorithm that reads its model, and where that run itself started from."""

    run: Run
    algorithm: Algorithm
    before: "Start | None"

    @property
    def facts(self) -> StartFacts:
        """What the result says of it."""
        result = self.run.result
        return StartFacts(
            run=self.run.folder.name, algorithm=result.recipe.algorithm, recipe_digest=result.recipe_digest
        )

    def load(self, load_base: LoadBase) -> "PreTrainedModel":
        """Load the run's model, everything trainable; `load_base` loads the untouched one."""
        model = self.algorithm.load(self.run.folder / MODEL, load_from(self.before, load_base))
        return model.requires_grad_(True)  # an adapter that was folded in leaves the weights frozen


def load_from(start: Start | None, load_base: LoadBase) -> LoadBase:
    """Return what loads the model that training starts from, or a folder's."""

    def load(folder: Path | None) -> "PreTrainedModel":
        return start.load(load_base) if start is not None and folder is None else load_base(folder)

    return load


def find_start(recipe: Recipe, registry: Registry) -> Start | None:
    """Read the run that the recipe starts from, if any, and what that one started from.

    Raises:
        UsageError: it did not end well, trained nothing, changed another model, or its algorithm is not installed.
        FtbenchError: it cannot be read.
    """
    if recipe.start is None:
        return None
    run = read_run(Path(recipe.start))
    result, where = run.result, f"cannot start from {recipe.start}"
    if result.status != "ok":
        raise UsageError(f"{where}: that run is {result.status}; choose one that is ok")
    if not (run.folder / MODEL).is_dir():
        raise UsageError(f"{where}: it holds no model; choose a run that trained one")
    if (result.recipe.model, result.recipe.revision) != (recipe.model, recipe.revision):
        raise UsageError(f"{where}: it changed the model {result.recipe.model}; add --model {result.recipe.model}")
    algorithm = registry.make(result.recipe.algorithm, result.recipe.options)
    return Start(run, algorithm, find_start(result.recipe, registry))
