"""The run whose model a training starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftbench.algorithm import Algorithm
from ftbench.data.task import TaskData
from ftbench.errors import FtbenchError, Skip, UsageError
from ftbench.recipe import Recipe
from ftbench.registry import Registry
from ftbench.results.mirror import locate, with_weights
from ftbench.results.result import StartFacts
from ftbench.results.store import MODEL, RESULT, Run, read_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LoadBase = Callable[[Path | None], "PreTrainedModel"]


@dataclass(frozen=True)
class Start:
    """A finished run, the algorithm that reads its model, and where that run itself started from."""

    run: Run
    algorithm: Algorithm
    before: "Start | None"
    registry: Registry

    @property
    def facts(self) -> StartFacts:
        """What the result says of it."""
        result = self.run.result
        return StartFacts(
            run=self.run.folder.name,
            algorithm=result.recipe.algorithm,
            recipe_digest=result.recipe_digest,
            started=result.started,
            tokens=(result.measures.training_tokens or 0) + (self.before.facts.tokens if self.before else 0),
        )

    def load(self, load_base: LoadBase) -> "PreTrainedModel":
        """Load the run's model, everything trainable; `load_base` loads the untouched one.

        Raises:
            Skip: what it learnt stands beside the weights and cannot be folded into them.
        """
        from transformers import PreTrainedModel

        model = self.algorithm.load(self.run.folder / MODEL, load_from(self.before, load_base))
        if not (isinstance(model, PreTrainedModel) and self.algorithm.packed):
            raise Skip(
                f"cannot start from {self.run.folder.name}: {self.run.result.recipe.algorithm} cannot be folded into "
                "the model's weights"
            )
        return model.requires_grad_(True)  # an adapter that was folded in leaves the weights frozen

    def check(self, data: TaskData, model_digest: str) -> None:
        """See that it changed the same base model, and never saw a prompt that is now held out.

        Raises:
            FtbenchError: it did not, or did; or its data are not what they were.
        """
        result = self.run.result
        if result.model_digest != model_digest:
            raise FtbenchError(f"cannot start from {self.run.folder.name}: the model that it changed is another now")
        if result.data is None or result.data.digest != data.digest():
            seen = self._trained_on() & {item.prompt for item in data.evaluation}
            if seen:
                raise FtbenchError(
                    f"cannot start from {self.run.folder.name}: it was trained on {len(seen)} of the prompts that are "
                    "held out here; train it with the same --data and evaluation_prompts"
                )
        if self.before:
            self.before.check(data, model_digest)

    def _trained_on(self) -> set[str]:
        recipe, facts = self.run.result.recipe, self.run.result.data
        then = self.registry.read_task(recipe)
        if facts is None or then.digest() != facts.digest:
            raise FtbenchError(
                f"cannot start from {self.run.folder.name}: its data ({recipe.data}) have changed, so that nobody "
                "knows whether it saw what is held out here"
            )
        return {example.prompt for example in then.train}


def load_from(start: Start | None, load_base: LoadBase) -> LoadBase:
    """Return what loads the model that training starts from, or a folder's."""

    def load(folder: Path | None) -> "PreTrainedModel":
        return start.load(load_base) if start is not None and folder is None else load_base(folder)

    return load


def find_start(recipe: Recipe, registry: Registry, beside: Path | None = None) -> Start | None:
    """Read the run that the recipe starts from, if any, and what that one started from.

    Args:
        recipe: of the run that starts there.
        registry: to read the model with.
        beside: the folder of runs to look in where the path no longer leads anywhere: runs may be moved together.

    Raises:
        UsageError: it did not end well, trained nothing, changed another model, or its algorithm is not installed.
        FtbenchError: it cannot be read.
    """
    if recipe.start is None:
        return None
    path = locate(recipe.start)
    if beside and not (path / RESULT).is_file():
        path = beside / path.name
    run = read_run(path)
    result, where = run.result, f"cannot start from {path.name}"
    if result.status != "ok":
        raise UsageError(f"{where}: that run is {result.status}; choose one that is ok")
    if not (with_weights(run.folder) / MODEL).is_dir():
        raise UsageError(f"{where}: it holds no model; choose a run that trained one")
    if (result.recipe.model, result.recipe.revision) != (recipe.model, recipe.revision):
        raise UsageError(f"{where}: it changed the model {result.recipe.model}; add --model {result.recipe.model}")
    algorithm = registry.make(result.recipe.algorithm, result.recipe.options)
    return Start(run, algorithm, find_start(result.recipe, registry, run.folder.parent), registry)
