"""`ftbench run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftbench.cli.asking import asking, read_recipes
from ftbench.cli.common import out_option, registry_with_warnings, warn

if TYPE_CHECKING:
    from ftbench.plugins import Registry
    from ftbench.recipe import Recipe
    from ftbench.results.result import Result
    from ftbench.results.store import Run


@click.command(name="run")
@asking
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many, from --seed on.")
@click.option("--time-limit", type=float, help="Seconds after which a run is ended.")
@click.option("--fresh", is_flag=True, help="Run again what is already there.")
@out_option
def command(
    algorithms: tuple[str, ...],
    recipe_name: str,
    settings: tuple[str, ...],
    seeds: int,
    fresh: bool,
    out: Path,
    **changes: Any,
) -> int:
    """Run algorithms on one task, each in a process of its own, and print the table.

    The untouched model (base) is run first where it has not been yet: the others are measured against it. A recipe
    that was already run to its end in --out is not run again. Several memory budgets, with commas between them, run
    every algorithm under each; --seeds 3 runs it under three seeds, which are one row with the interval that they make.
    """
    from ftbench.recipe import BASELINE

    registry = registry_with_warnings()
    always = [BASELINE] if BASELINE in registry.algorithms else []
    recipes = read_recipes([*always, *algorithms], recipe_name, settings, changes, out, registry)
    recipes += _more_seeds(recipes, seeds, registry)
    inputs = _check_inputs(recipes[0])
    runs = _run_all(recipes, inputs, registry, out, fresh)
    return _report(runs)


def _more_seeds(recipes: list["Recipe"], seeds: int, registry: "Registry") -> list["Recipe"]:
    """Return the recipes under the further seeds; what trains nothing is the same under every one."""
    trained = [recipe for recipe in recipes if registry.find(recipe.algorithm).needs != "nothing"]
    return [recipe.change(seed=recipe.seed + more) for more in range(1, seeds) for recipe in trained]


def _check_inputs(recipe: "Recipe") -> tuple[str, str | None]:
    """Read the data and find the model before the first run starts: what is wrong with them is wrong for all.

    Returns:
        The digests of the data and of the model; None for the shipped model, which cannot change.
    """
    from ftbench.data.task import build_task
    from ftbench.models.resolve import resolve_model
    from ftbench.recipe import DEFAULT_MODEL

    # The shipped model is unpacked by the first run, which takes a while.
    model = None if recipe.model == DEFAULT_MODEL else resolve_model(recipe.model, recipe.revision).digest
    return build_task(recipe.data, recipe.topic, recipe.lang, recipe.evaluation_prompts).digest(), model


def _still_holds(result: "Result", inputs: tuple[str, str | None]) -> bool:
    """Whether a result is of today's data, model, start and software, and not of what has changed since."""
    from ftbench.execution.environment import changed_versions

    data, model = inputs
    return (
        result.status == "ok"
        and result.data is not None
        and result.data.digest == data
        and model in (None, result.model_digest)
        and _same_start(result)
        and result.environment is not None
        and not changed_versions(result.environment.versions, result.plugin)
    )


def _same_start(result: "Result") -> bool:
    """Whether the run that training started from is still the same run."""
    from ftbench.results.store import read_run

    if result.start is None or result.recipe.start is None:
        return result.recipe.start is None
    return read_run(Path(result.recipe.start)).result.started == result.start.started


def _run_all(
    recipes: list["Recipe"], inputs: tuple[str, str | None], registry: "Registry", out: Path, fresh: bool
) -> list["Run"]:
    from ftbench.cli.progress import RunProgress
    from ftbench.execution.local import launch
    from ftbench.recipe import BASELINE
    from ftbench.results.store import read_runs

    finished: dict[str, Run] = {}
    if out.is_dir() and not fresh:
        found, warnings = read_runs(out)
        warn(warnings)
        wanted = {recipe.digest() for recipe in recipes}  # what is asked of a run costs more than reading it
        found = [run for run in found if run.result.recipe_digest in wanted]
        finished = {run.result.recipe_digest: run for run in found if _still_holds(run.result, inputs)}
    runs: list[Run] = []
    baseline: Run | None = None
    for recipe in recipes:
        run = finished.get(recipe.digest())
        if run is not None:
            click.echo(f"{_name(recipe)}: already there: {run.folder} (--fresh runs it again)", err=True)
        else:
            with RunProgress(_name(recipe)) as progress:
                run = launch(recipe, registry, out, baseline, progress)
            line = f"{_name(recipe)}: {run.result.status}" + (f": {run.result.reason}" if run.result.reason else "")
            click.echo(f"{line} ({run.folder})", err=True)
        if recipe.algorithm == BASELINE and run.result.status == "ok":
            baseline = run
        runs.append(run)
    return runs


def _name(recipe: "Recipe") -> str:
    return recipe.algorithm if recipe.seed == 0 else f"{recipe.algorithm}, seed {recipe.seed}"


def _report(runs: list["Run"]) -> int:
    from ftbench.results.rows import build_groups
    from ftbench.results.table import render

    click.echo()
    click.echo(render(build_groups(runs), "github"))
    taught = [run for run in runs if run.result.status == "ok"]
    if taught:
        click.echo(f"\nReplies beside the base model's: ftbench show {taught[-1].folder}")
    return 1 if any(run.result.status not in ("ok", "skipped") for run in runs) else 0
