"""One run in one process: `python -m ftbench.execution.worker FOLDER [--baseline RUN] [--save-every SECONDS]`.

FOLDER holds recipe.toml; the worker leaves there the result and all else that a run leaves. RUN is the folder of the
finished run of the untouched model, from which forgetting is counted and whose replies are set beside. The state of
training is kept beside FOLDER, and taken up from there.
"""

import argparse
import os
import shutil
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ftbench.algorithm import Algorithm
from ftbench.errors import Skip
from ftbench.execution.blame import blame
from ftbench.execution.events import EventWriter, Traced
from ftbench.execution.outcome import build_result
from ftbench.execution.phases import Facts, RunInProgress
from ftbench.execution.ranks import is_lost, join
from ftbench.execution.starting import find_start
from ftbench.execution.unfinished import Saving, state_file
from ftbench.files import write_json
from ftbench.memory.budget import format_bytes
from ftbench.memory.fit import is_out_of_memory
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe, read_recipe
from ftbench.registry import Registry
from ftbench.results.result import BaselineFacts, MemoryPlan, Status
from ftbench.results.store import MODEL, RECIPE, RESULT, Run, read_run
from ftbench.tracing import is_traced, say, trace


def main() -> None:
    """Carry out the run and write its result, whatever its end."""
    ranks = join()
    events = EventWriter(os.dup(1))
    events.end_with_reader()
    if not ranks.leads:
        events = EventWriter(os.open(os.devnull, os.O_WRONLY))
    os.dup2(2, 1)  # what libraries print goes to the log, not between the events
    given = _arguments()
    folder = given.folder
    baseline = read_run(given.baseline) if given.baseline else None
    recipe = read_recipe(str(folder / RECIPE))
    registry = load_plugins()
    facts = Facts(baseline=_describe(baseline) if baseline else None)
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    status: Status = "ok"
    reason = None
    try:
        algorithm = registry.make(recipe.algorithm, recipe.options)
        if is_traced():
            _trace(algorithm, registry, events)
        start = find_start(recipe, registry)
        beside = baseline.replies() if baseline else []
        saving = None
        if given.save_every and ranks.count == 1:  # a share of a state is none that another number could take up
            saving = Saving(state_file(recipe, folder.parent), given.save_every)
        RunInProgress(recipe, algorithm, registry, start, folder, beside, events, facts, saving, ranks).carry_out()
    except Exception as error:
        if ranks.count > 1 and is_lost(error):
            raise
        status, reason = _judge_error(error, recipe, registry, facts.memory_plan)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        with suppress(OSError):  # the disk may be full
            traceback.print_exc()
    result = build_result(recipe, registry, facts, status, reason, started)
    if status != "ok" and (folder / RESULT).is_file():  # by the rank that failed first
        sys.exit(1)
    if status != "ok" or ranks.leads:
        write_json(folder / RESULT, result.model_dump(mode="json"))
    if status != "ok" and ranks.count > 1:  # ends the others
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--save-every", type=float, default=0.0)
    return parser.parse_args()


def _trace(algorithm: Algorithm, registry: Registry, events: EventWriter) -> None:
    """Say what the algorithm does, and what those do that it takes its adapter from or leaves the task to."""

    def tell(line: str) -> None:
        say(line)
        events.send(Traced(line))

    for one in (algorithm, algorithm.adapter, algorithm.then):
        if one is not None:
            plugin = registry.plugin_of(one.name)
            trace(one, f"{plugin.name} {plugin.version}", tell)


def _describe(baseline: Run) -> BaselineFacts:
    result = baseline.result
    return BaselineFacts(run=baseline.folder.name, recipe_digest=result.recipe_digest, started=result.started)


def _judge_error(error: Exception, recipe: Recipe, registry: Registry, plan: MemoryPlan | None) -> tuple[Status, str]:
    """Tell an out-of-memory, whatever library raised it, from other failures; one line for either."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        budget = f" under a budget of {format_bytes(recipe.memory_budget)}" if recipe.memory_budget else ""
        needed = plan.needed_bytes if plan and not plan.fits else None
        advice = f"; {format_bytes(needed)} should do (predicted)" if needed else ""
        return "out-of-memory", f"an allocation failed{budget}{advice}: {text[:200] or type(error).__name__}"
    if isinstance(error, Skip):
        return "skipped", text
    return "failed", blame(error, registry.find(recipe.algorithm), registry.plugin_of(recipe.algorithm))


if __name__ == "__main__":
    main()
