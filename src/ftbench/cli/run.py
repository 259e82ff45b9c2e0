"""`ftbench run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftbench.cli.common import out_option, registry_with_warnings, warn
from ftbench.errors import UsageError, nearest

if TYPE_CHECKING:
    from ftbench.plugins import Registry
    from ftbench.recipe import Recipe
    from ftbench.results.result import Result
    from ftbench.results.store import Run


@click.command(name="run")
@click.option("--algo", "algorithms", multiple=True, required=True, help="Algorithm to run; repeat it, or say 'all'.")
@click.option("--recipe", "recipe_name", default="quick", show_default=True, help="A shipped recipe or a TOML file.")
@click.option("--model", help="The shipped model's name, a hub id (owner/name) or a folder.")
@click.option("--revision", help="Hub revision of the model.")
@click.option("--data", help="sample, oasst1, or a .jsonl[.gz] file.")
@click.option("--topic", help="A shipped topic, or a file with a topic word a line.")
@click.option("--lang", help="Language of the messages.")
@click.option("--from", "start", metavar="RUN", help="Start from the model of an earlier run in --out, or its folder.")
@click.option("--tokens", type=int, help="Real tokens to train on.")
@click.option("--training-seconds", type=float, help="End training here even if tokens are left: rows of equal time.")
@click.option("--max-length", type=int, help="Tokens of prompt and completion together.")
@click.option("--memory-budget", "budget", help="What training may add to memory: 4GiB, 800MiB, …")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option("--time-limit", type=float, help="Seconds after which a run is ended.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="lora.rank=32, or a recipe's setting.")
@click.option("--fresh", is_flag=True, help="Run again what is already there.")
@out_option
def command(
    algorithms: tuple[str, ...], recipe_name: str, settings: tuple[str, ...], fresh: bool, out: Path, **changes: Any
) -> int:
    """Run algorithms on one task, each in a process of its own, and print the table.

    The untouched model (base) is run first where it has not been yet: the others are measured against it. A recipe
    that was already run to its end in --out is not run again.
    """
    from ftbench.plugins import merged
    from ftbench.recipe import BASELINE

    registry = registry_with_warnings()
    wanted = _expand(algorithms, registry)
    if changes["start"] is not None:
        changes["start"] = _find_start(changes["start"], out)
    recipe, options = _recipe(recipe_name, changes, settings, registry)
    unused = [name for name in options if name not in wanted and name != BASELINE]
    if unused:
        raise UsageError(f"--set {unused[0]}.…: algorithm '{unused[0]}' is not run; {nearest(unused[0], wanted)}")
    if BASELINE in registry.algorithms:
        wanted = {BASELINE: {}, **wanted}
    recipes = [
        _for_algorithm(recipe, name, merged(held, options.get(name, {})), registry) for name, held in wanted.items()
    ]
    inputs = _check_inputs(recipe)
    runs = _run_all(recipes, inputs, registry, out, fresh)
    return _report(runs)


def _expand(algorithms: tuple[str, ...], registry: "Registry") -> dict[str, dict[str, Any]]:
    """Return the names asked for, each once, the untouched model first, with the options that they stand for."""
    from ftbench.plugins import ALL
    from ftbench.recipe import BASELINE

    wanted: dict[str, dict[str, Any]] = {}
    for given in algorithms:
        for asked in registry.all_names if given == ALL else [given]:
            name, options = registry.resolve(asked)
            if wanted.setdefault(name, options) != options:
                raise UsageError(f"--algo {asked}: another '{name}' is already there; rename one of the files")
    return dict(sorted(wanted.items(), key=lambda item: item[0] != BASELINE))


def _find_start(name: str, out: Path) -> str:
    """Return the folder of the run to start from."""
    from ftbench.results.store import find_run

    try:
        return str(find_run(name, out, ok=True).folder.resolve())
    except UsageError as error:
        raise UsageError(f"--from {name}: {error}") from error


def _recipe(
    name: str, changes: dict[str, Any], settings: tuple[str, ...], registry: "Registry"
) -> tuple["Recipe", dict[str, dict[str, Any]]]:
    """Return the recipe with the changes of the command line, and every algorithm's own options."""
    from ftbench.memory.budget import parse_bytes
    from ftbench.recipe import Recipe, read_recipe

    recipe = read_recipe(name)
    given = {key: value for key, value in changes.items() if value is not None}
    if "budget" in given:
        given["memory_budget"] = parse_bytes(given.pop("budget"))
    options: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        owner, dot, option = key.partition(".")
        if not separator or not key:
            raise UsageError(f"--set {setting}: write NAME=VALUE, for example lora.rank=32")
        if dot:
            registry.find(owner)
            options.setdefault(owner, {})[option] = _value(value)
        elif key not in Recipe.model_fields or key in ("algorithm", "options"):
            raise UsageError(
                f"--set {key}: no such setting; {nearest(key, Recipe.model_fields)}, or ALGORITHM.OPTION=VALUE"
            )
        else:
            given[key] = _value(value)
    if "data" in given and given["data"] != recipe.data and "topic" not in given:
        raise UsageError(
            f"--data {given['data']} needs a --topic: a shipped one, a file of words, or what your own pairs are about"
        )
    if "model" in given and given["model"] != recipe.model:
        given.setdefault("revision", None)
    return recipe.change(**given), options


def _value(text: str) -> Any:
    """Read a value as TOML does (32, 0.1, true, "text"); what is not TOML is text."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _for_algorithm(recipe: "Recipe", name: str, options: dict[str, Any], registry: "Registry") -> "Recipe":
    """Return the recipe for one algorithm, its defaults written out."""
    from ftbench.execution.starting import find_start
    from ftbench.plugins import merged

    held = recipe.options if recipe.algorithm == name else {}
    algorithm = registry.make(name, merged(held, options))
    untrained = algorithm.needs == "nothing"
    values = algorithm.config.model_dump(mode="json", exclude={"learning_rate"} if untrained else None)
    changed = recipe.change(algorithm=name, options=values, start=None if untrained else recipe.start)
    find_start(changed, registry)  # what is wrong with it shows before the first run
    return changed


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
            click.echo(f"{recipe.algorithm}: already there: {run.folder} (--fresh runs it again)", err=True)
        else:
            with RunProgress(recipe.algorithm) as progress:
                run = launch(recipe, registry, out, baseline, progress)
            line = f"{recipe.algorithm}: {run.result.status}" + (f": {run.result.reason}" if run.result.reason else "")
            click.echo(f"{line} ({run.folder})", err=True)
        if recipe.algorithm == BASELINE and run.result.status == "ok":
            baseline = run
        runs.append(run)
    return runs


def _report(runs: list["Run"]) -> int:
    from ftbench.results.table import build_groups, render

    click.echo()
    click.echo(render(build_groups(runs), "github"))
    taught = [run for run in runs if run.result.status == "ok"]
    if taught:
        click.echo(f"\nReplies beside the base model's: ftbench show {taught[-1].folder}")
    return 1 if any(run.result.status not in ("ok", "skipped") for run in runs) else 0
