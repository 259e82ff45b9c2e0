"""`ftbench rerun RUN`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftbench.cli.common import echo_json, json_option, out_option, registry_with_warnings, warn

if TYPE_CHECKING:
    from ftbench.cli.running import Runner
    from ftbench.results.store import Run


@click.command(name="rerun")
@click.argument("run")
@out_option
@json_option
def command(run: str, out: Path, as_json: bool) -> int:
    """Do RUN again, and say what came out different; RUN is a folder, or the beginning of its name in --out.

    The new run is put beside the old one. Forgetting is counted from the same run of the untouched model, or from a new
    one where that is gone or no longer holds. A learning rate that was sought is not sought again.

    Exit code: 0 if status, replies and figures of quality are identical, whatever the speed and the memory; 1 if not.
    """
    from ftbench.cli.running import Runner
    from ftbench.results.delivery import send_waiting
    from ftbench.results.repetition import compare_runs, describe_repetition
    from ftbench.results.store import find_run

    found = find_run(run, out)
    result = found.result
    registry = registry_with_warnings()
    registry.make(result.recipe.algorithm, result.recipe.options)  # what is not installed shows before the first run
    runner = Runner.begin(result.recipe, registry, found.folder.parent, fresh=False)
    warn(_changed_inputs(found, runner))
    again = runner.launch(result.recipe, result.recipe.algorithm, _baseline(found, runner), result.tuning)
    repetition = compare_runs(found, again)
    if as_json:
        echo_json(repetition.model_dump(mode="json"))
    else:
        click.echo(describe_repetition(repetition))
    send_waiting(runner.out)
    return 0 if repetition.same else 1


def _changed_inputs(run: "Run", runner: "Runner") -> list[str]:
    """Say what of the recipe's files is no longer what it was: then nothing else has to come out the same."""
    from ftbench.execution.reuse import same_start

    recipe, result, inputs = run.result.recipe, run.result, runner.inputs
    lines = []
    if result.data and result.data.digest != inputs.data:
        lines.append(f"the data ({recipe.data}) have changed since, or how they are read")
    if result.model_digest and inputs.model not in (None, result.model_digest):
        lines.append(f"the model ({recipe.model}) has changed since")
    if result.start and not same_start(result):
        lines.append(f"the run that training started from ({result.start.run}) has been made again since")
    return lines


def _baseline(run: "Run", runner: "Runner") -> "Run | None":
    """Return the untouched model's run, made now where there is none; a trial of tuning and itself do without."""
    from ftbench.execution.reuse import base_recipe, find_baseline
    from ftbench.recipe import BASELINE

    recipe = run.result.recipe
    if recipe.algorithm == BASELINE or recipe.split != "evaluation" or BASELINE not in runner.registry.algorithms:
        return None
    found = find_baseline(run, runner.there, runner.inputs)
    if found is None:
        found = runner.launch(base_recipe(recipe), BASELINE)
        click.echo(f"{BASELINE}: {found.result.status} ({found.folder})", err=True)
    return found if found.result.status == "ok" else None
