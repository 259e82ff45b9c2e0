"""What is asked for on the command line, as recipes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftbench.errors import UsageError, nearest

if TYPE_CHECKING:
    from ftbench.recipe import Recipe
    from ftbench.registry import Registry

_OPTIONS = [
    click.option(
        "--algo",
        "algorithms",
        multiple=True,
        help="Algorithm to run; repeat it, or say 'all'. Not needed where the recipe names one.",
    ),
    click.option(
        "--recipe", "recipe_name", default="quick", show_default=True, help="A shipped recipe or a TOML file."
    ),
    click.option("--model", help="The shipped model's name, a hub id (owner/name) or a folder."),
    click.option("--revision", help="Hub revision of the model."),
    click.option("--data", help="sample, oasst1, a plugin's, or a .jsonl[.gz] file."),
    click.option("--task", help="What is taught: topic, style, pairs, or a plugin's."),
    click.option("--topic", help="A shipped topic, or a file with a topic word a line; of other tasks what they ask."),
    click.option("--lang", help="Language of the messages."),
    click.option(
        "--from", "start", metavar="RUN", help="Start from the model of an earlier run in --out, or its folder."
    ),
    click.option("--tokens", type=int, help="Real tokens to train on."),
    click.option(
        "--training-seconds", type=float, help="End training here even if tokens are left: rows of equal time."
    ),
    click.option("--max-length", type=int, help="Tokens of prompt and completion together."),
    click.option(
        "--memory-budget",
        "budget",
        help="What a run may take: 4GiB, 800MiB, 80%; or several: 1GiB,2GiB. Steps are cut to fit, from the recipe's "
        "micro_batch_tokens down.",
    ),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute."),
    click.option("--devices", type=int, help="Over how many of these the model is spread; each has the budget."),
    click.option("--seed", type=int, help="Seed of everything random."),
    click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="lora.rank=32, or a recipe's setting."),
]


def asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that recipes are made of."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_recipes(
    algorithms: Sequence[str],
    recipe_name: str,
    settings: Sequence[str],
    changes: dict[str, Any],
    out: Path,
    registry: "Registry",
    always: Sequence[str] = (),
) -> "list[Recipe]":
    """Return a recipe for each algorithm that is asked for, the untouched model's first where it is among them.

    Where none is asked for it is the recipe's own; what a finished run wrote down is then the very same recipe again.

    Args:
        algorithms: as --algo says.
        recipe_name: of a shipped one, or a file.
        settings: as --set says.
        changes: of the recipe's settings, by option; None where an option was not given.
        out: the folder of runs, where --from looks.
        registry: the plugins.
        always: algorithms besides.

    Raises:
        UsageError: what is asked for does not exist or does not fit together.
    """
    from ftbench.recipe import BASELINE, read_recipe
    from ftbench.registry import merged

    read = read_recipe(recipe_name)
    own = read if "algorithm" in read.model_fields_set else None
    if not algorithms and own is None:
        raise UsageError("which algorithm? say --algo lora, or --algo all, or give a --recipe that names one")
    wanted = _expand([*always, *(algorithms or [read.algorithm])], own, registry)
    if changes["start"] is not None:
        changes["start"] = _find_start(changes["start"], out)
    asked = changes.pop("budget")
    recipe, options = _recipe(read, changes, settings, registry)
    budgets = _read_budgets(asked, recipe.device)
    registry.find_judge(recipe.judge)
    unused = [name for name in options if name not in wanted and name != BASELINE]
    if unused:
        raise UsageError(f"--set {unused[0]}.…: algorithm '{unused[0]}' is not run; {nearest(unused[0], wanted)}")
    recipes = []
    for name, held in wanted.items():
        one = _for_algorithm(recipe, name, merged(held, options.get(name, {})), registry)
        if name == BASELINE and budgets:  # the yardstick of all is taken once, with most room
            recipes.append(one.change(memory_budget=max(budgets)))
        else:
            recipes += [one.change(memory_budget=budget) for budget in budgets] or [one]
    return recipes


def _read_budgets(text: str | None, device: str) -> list[int]:
    """Return the memory budgets that are asked for, in bytes, each once; shares are of the device's memory."""
    from ftbench.memory.budget import device_memory, parse_budget

    parts = [] if text is None else text.split(",")
    return list(dict.fromkeys(parse_budget(part, lambda: device_memory(device)) for part in parts))


def _expand(algorithms: Sequence[str], own: "Recipe | None", registry: "Registry") -> dict[str, dict[str, Any]]:
    """Return the names asked for, each once, the untouched model first, with the options that they stand for.

    The algorithm that the recipe itself names has its options there, and may be a file's, which need not exist.
    """
    from ftbench.contract import ALL
    from ftbench.recipe import BASELINE

    wanted: dict[str, dict[str, Any]] = {}
    for given in algorithms:
        for asked in registry.all_names if given == ALL else [given]:
            if own and asked == own.algorithm:
                name, options = registry.resolve_given(asked, own.options)
            else:
                name, options = registry.resolve(asked)
            if wanted.setdefault(name, options) != options:
                raise UsageError(f"--algo {asked}: another '{name}' is already there; rename one of the files")
    return dict(sorted(wanted.items(), key=lambda item: item[0] != BASELINE))


def _find_start(name: str, out: Path) -> str:
    """Return the folder of the run to start from, or its URL."""
    from ftbench.results.address import address_of
    from ftbench.results.store import find_run

    try:
        return address_of(find_run(name, out, ok=True).folder)
    except UsageError as error:
        raise UsageError(f"--from {name}: {error}") from error


def _recipe(
    recipe: "Recipe", changes: dict[str, Any], settings: Sequence[str], registry: "Registry"
) -> tuple["Recipe", dict[str, dict[str, Any]]]:
    """Return the recipe with the changes of the command line, and every algorithm's own options."""
    from ftbench.recipe import Recipe

    given = {key: value for key, value in changes.items() if value is not None}
    options: dict[str, dict[str, Any]] = {}
    for setting in settings:
        owner, key, value = _setting(setting)
        if owner:
            registry.find(owner)
            options.setdefault(owner, {})[key] = value
        elif key not in Recipe.model_fields or key in ("algorithm", "options"):
            raise UsageError(
                f"--set {key}: no such setting; {nearest(key, Recipe.model_fields)}, or ALGORITHM.OPTION=VALUE"
            )
        else:
            given[key] = value
    if "data" in given and given["data"] != recipe.data and "topic" not in given:
        raise UsageError(
            f"--data {given['data']} needs a --topic: a shipped one, a file of words, or what your own pairs are about"
        )
    if "model" in given and given["model"] != recipe.model:
        given.setdefault("revision", None)
    task = registry.find_task(given.get("task", recipe.task))
    if "judge" not in given and "judge" not in recipe.model_fields_set:
        given["judge"] = task.judge
    return recipe.change(**given), options


def options_of(algorithms: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return each algorithm's own options, by its name, where nothing but these can be set.

    Raises:
        UsageError: a setting is none of these algorithms'.
    """
    options: dict[str, dict[str, Any]] = {name: {} for name in algorithms}
    for setting in settings:
        owner, key, value = _setting(setting)
        if owner not in options:
            raise UsageError(f"--set {setting}: write ALGORITHM.OPTION=VALUE; {nearest(owner, options)}")
        options[owner][key] = value
    return options


def _setting(text: str) -> tuple[str, str, Any]:
    """Read what --set says: the algorithm (empty for the recipe's own), the setting, its value."""
    key, separator, value = text.partition("=")
    owner, dot, option = key.partition(".")
    if not separator or not key:
        raise UsageError(f"--set {text}: write NAME=VALUE, for example lora.rank=32")
    return (owner, option, _value(value)) if dot else ("", key, _value(value))


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
    from ftbench.registry import merged

    held = recipe.options if recipe.algorithm == name else {}
    algorithm = registry.make(name, merged(held, options))
    untrained = algorithm.needs == "nothing"
    values = algorithm.config.model_dump(mode="json", exclude={"learning_rate"} if untrained else None)
    changed = recipe.change(algorithm=name, options=values, start=None if untrained else recipe.start)
    find_start(changed, registry)  # what is wrong with it shows before the first run
    return changed
