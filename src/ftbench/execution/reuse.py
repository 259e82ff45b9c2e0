"""Whether a run that is there already would come out the same today."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftbench.execution.environment import changed_versions
from ftbench.models.resolve import resolve_model
from ftbench.recipe import BASELINE, DEFAULT_MODEL, Recipe
from ftbench.registry import Registry
from ftbench.results.mirror import locate
from ftbench.results.result import Result
from ftbench.results.store import Run, read_run


@dataclass(frozen=True)
class Inputs:
    """Digests of the data and of the model; None for the shipped model, which cannot change."""

    data: str
    model: str | None


def read_inputs(recipe: Recipe, registry: Registry) -> Inputs:
    """Read the data and find the model: what is wrong with them shows before the first run starts.

    Raises:
        UsageError: no such data, topic or model.
        FtbenchError: they cannot be read, or hold too little.
    """
    # The shipped model is unpacked by the first run, which takes a while.
    shipped = recipe.model == DEFAULT_MODEL
    model = None if shipped else resolve_model(recipe.model, recipe.revision, registry.models).digest
    return Inputs(registry.read_task(recipe).digest(), model)


def still_holds(result: Result, inputs: Inputs) -> bool:
    """Whether a result is of today's data, model, start and software, and not of what has changed since."""
    return (
        result.data is not None
        and result.data.digest == inputs.data
        and inputs.model in (None, result.model_digest)
        and same_start(result)
        and result.environment is not None
        and not changed_versions(result.environment.versions, result.plugin)
    )


def find_baseline(run: Run, beside: Sequence[Run], inputs: Inputs) -> Run | None:
    """Return the untouched model's run to count a run's forgetting from, when it is done again.

    Args:
        run: to be done again.
        beside: the runs of its folder, oldest first.
        inputs: of today.

    Returns:
        The one that it used, else the newest that was asked the same; None where none holds today.
    """
    asked = _asked_of_base(run.result.recipe)
    used = run.result.baseline
    fitting = [
        other
        for other in beside
        if other.result.status == "ok"
        and other.result.recipe.algorithm == BASELINE
        and _asked_of_base(other.result.recipe) == asked
        and still_holds(other.result, inputs)
    ]
    same = [other for other in fitting if used and other.result.started == used.started]
    candidates = same or fitting
    return candidates[-1] if candidates else None


def base_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe of the untouched model's run beside a recipe's."""
    return recipe.change(algorithm=BASELINE, options={}, start=None)


def _asked_of_base(recipe: Recipe) -> Recipe:
    """Leave out what changes nothing in what the untouched model says."""
    return base_recipe(recipe).change(name="", seed=0, memory_budget=None, time_limit=None, devices=1)


def same_start(result: Result) -> bool:
    """Whether the run that training started from is still the same run."""
    if result.start is None or result.recipe.start is None:
        return result.recipe.start is None
    return read_run(locate(result.recipe.start)).result.started == result.start.started
