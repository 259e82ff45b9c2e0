"""`ftbench plan`."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftbench.cli.asking import asking, read_recipes
from ftbench.cli.common import echo_json, echo_table, json_option, out_option, registry_with_warnings

if TYPE_CHECKING:
    from ftbench.execution.planning import PlannedRun


@click.command(name="plan")
@asking
@json_option
@out_option
def command(
    algorithms: tuple[str, ...],
    recipe_name: str,
    settings: tuple[str, ...],
    as_json: bool,
    out: Path,
    **changes: Any,
) -> None:
    """Predict what training takes in memory, and how a step is cut to fit under a budget, without running anything.

    Reads the model's configuration, not its weights, so that the model may be far larger than this machine. The
    effective batch stays the recipe's: what does not fit at once is accumulated. The micro-batch is the largest that
    fits of the recipe's (--set micro_batch_tokens=4096 raises it), its half, its quarter, down to one example.
    """
    from ftbench.memory.heap import MODELS, import_for_good

    registry = registry_with_warnings()
    recipes = read_recipes(algorithms, recipe_name, settings, changes, out, registry)
    import_for_good(*MODELS)
    from ftbench.execution.planning import Planner

    planner = Planner(registry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries' words to one another
        rows = [planner.plan(recipe) for recipe in recipes]
    if as_json:
        echo_json([row.model_dump(mode="json") for row in rows])
    else:
        _print(rows, planner.notes)


def _print(rows: "Sequence[PlannedRun]", notes: Sequence[str]) -> None:
    from ftbench.memory.budget import format_bytes

    budgets = any(row.memory_budget for row in rows)
    parts = ("parameters", "gradients", "optimiser", "activations", "logits")
    lines = []
    for row in rows:
        plan = row.plan
        if plan is None or plan.predicted_bytes is None:
            continue
        line = [row.algorithm]
        if budgets:
            line += [
                format_bytes(row.memory_budget or 0),
                "yes" if plan.fits else f"no: needs {format_bytes(plan.needed_bytes or 0)}",
            ]
        line += [format_bytes(plan.predicted_bytes), *(format_bytes(plan.predicted_parts[part]) for part in parts)]
        line += [f"{plan.micro_batch_tokens:,}", str(plan.accumulation), "yes" if plan.checkpointing else "no"]
        lines.append(line)
    headings = ["algorithm", *(["budget", "fits"] if budgets else []), "peak", *parts]
    headings += ["micro-batch (tokens)", "micro-batches a step", "checkpointing"]
    if lines:
        echo_table(lines, headings)
        click.echo()
    about = [line for row in rows for line in _remarks(row)]
    for note in dict.fromkeys([*about, *notes]):  # budgets of a sweep have many in common
        click.echo(f"- {note}")


def _remarks(row: "PlannedRun") -> list[str]:
    from ftbench.memory.budget import format_bytes

    remarks = [f"{row.algorithm}: {row.reason}"] if row.reason else []
    plan = row.plan
    if plan and plan.fits is False and (plan.loading_bytes or 0) > (plan.predicted_bytes or 0):
        remarks.append(f"{row.algorithm}: loading takes more than training: {format_bytes(plan.loading_bytes or 0)}")
    return remarks
