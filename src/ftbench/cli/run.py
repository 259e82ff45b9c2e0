"""`ftbench run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftbench.cli.asking import asking, read_recipes
from ftbench.cli.common import out_option, registry_with_warnings
from ftbench.cli.running import SAVE_EVERY
from ftbench.execution.launchers import NAMES

if TYPE_CHECKING:
    from ftbench.recipe import Recipe
    from ftbench.registry import Registry
    from ftbench.results.store import Run


@click.command(name="run")
@asking
@click.option("--seeds", type=click.IntRange(1, 1000), default=1, show_default=True, help="How many, from --seed on.")
@click.option(
    "--tune", is_flag=True, help="First seek each algorithm's learning rate, on prompts that evaluation never asks."
)
@click.option("--time-limit", type=float, help="Seconds after which a run is ended.")
@click.option(
    "--save-every",
    type=click.FloatRange(min=0),
    default=SAVE_EVERY,
    show_default=True,
    help="Seconds of training after which its state is kept again, to go on from if the run is killed; 0: never.",
)
@click.option(
    "--report-to",
    metavar="NAME[,NAME]",
    help="Tell tensorboard, wandb, mlflow, trackio or another tool that transformers knows of each step and result.",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1, 1024),
    help="Runs at once on a machine, if memory allows: by default one a card, or one on the processor.",
)
@click.option(
    "--launcher", type=click.Choice(NAMES), default=NAMES[0], show_default=True, help="What runs are made by."
)
@click.option(
    "--ray-address", help="Of a Ray cluster that is there; RAY_ADDRESS says it, too. Else one is started here."
)
@click.option(
    "--resume/--fresh",
    default=True,
    help="Keep what is there, and go on with what was killed; or run all of it again. By default the first.",
)
@out_option
def command(
    algorithms: tuple[str, ...],
    recipe_name: str,
    settings: tuple[str, ...],
    seeds: int,
    tune: bool,
    save_every: float,
    report_to: str | None,
    jobs: int | None,
    launcher: str,
    ray_address: str | None,
    resume: bool,
    out: Path,
    **changes: Any,
) -> int:
    """Run algorithms on one task, each in a process of its own, and print the table.

    The untouched model (base) is run first where it has not been yet: the others are measured against it. A recipe
    that was already run to its end in --out is not run again; one that was killed while it trained goes on from where
    its state was kept last. Several memory budgets, with commas between them, run
    every algorithm under each; --seeds 3 runs it under three seeds, which are one row with the interval that they make.

    --tune tries five learning rates around each algorithm's own, on the first seed and the largest budget, by
    successive halving: 4.75 times the recipe's tokens for every algorithm. It asks training prompts that are set aside
    for it; the run itself trains on them, too.

    Where there is room for several runs at once, those that will take longest are begun first. --launcher ray makes
    them on the nodes of a Ray cluster, which share the folder --out, or reach its URL.
    """
    from ftbench.cli.batch import Batch
    from ftbench.cli.running import Runner, new_progress
    from ftbench.cli.tuning import Tuner
    from ftbench.execution.launchers import make_launcher
    from ftbench.execution.machine import check_devices
    from ftbench.execution.reporting import read_tools
    from ftbench.recipe import BASELINE
    from ftbench.results.delivery import send_waiting

    tools = read_tools(report_to)
    registry = registry_with_warnings()
    always = [BASELINE] if BASELINE in registry.algorithms else []
    recipes = read_recipes(algorithms, recipe_name, settings, changes, out, registry, always)
    if launcher == NAMES[0]:  # on a cluster it is the nodes that have devices
        check_devices(recipes)
    recipes += _more_seeds(recipes, seeds, registry)
    made_by, progress = make_launcher(launcher, jobs, ray_address), new_progress()
    trained = [recipe for recipe in recipes if tune and _is_trained(recipe, registry)]
    tuner = Tuner.begin(trained, registry, out, fresh=not resume, launcher=made_by, progress=progress)
    runner = Runner.begin(
        recipes[0],
        registry,
        out,
        fresh=not resume,
        save_every=save_every,
        report_to=tools,
        launcher=made_by,
        progress=progress,
    )
    code = _report(Batch(recipes, runner, tuner).carry_out())
    for one in [tuner.runner, runner] if tuner else [runner]:
        send_waiting(one.out)
    return code


def _more_seeds(recipes: list["Recipe"], seeds: int, registry: "Registry") -> list["Recipe"]:
    """Return the recipes under the further seeds; what trains nothing is the same under every one."""
    trained = [recipe for recipe in recipes if _is_trained(recipe, registry)]
    return [recipe.change(seed=recipe.seed + more) for more in range(1, seeds) for recipe in trained]


def _is_trained(recipe: "Recipe", registry: "Registry") -> bool:
    return registry.find(recipe.algorithm).needs != "nothing"


def _report(runs: list["Run"]) -> int:
    from ftbench.results.address import words_for
    from ftbench.results.rows import build_groups
    from ftbench.results.table import render

    click.echo()
    click.echo(render(build_groups(runs), "github"))
    taught = [run for run in runs if run.result.status == "ok"]
    if taught:
        click.echo(f"\nReplies beside the base model's: ftbench show {' '.join(words_for(taught[-1].folder))}")
    return 1 if any(run.result.status not in ("ok", "skipped") for run in runs) else 0
