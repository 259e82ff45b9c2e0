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
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ftbench.algorithm import Algorithm
from ftbench.errors import FtbenchError, Skip
from ftbench.execution.blame import blame
from ftbench.execution.course import Course
from ftbench.execution.events import EventWriter, Traced
from ftbench.execution.facts import Facts
from ftbench.execution.outcome import build_result
from ftbench.execution.phases import RunInProgress
from ftbench.execution.ranks import is_lost, join
from ftbench.execution.shortage import explain_shortage
from ftbench.execution.starting import find_start
from ftbench.execution.teaching import TRAIN
from ftbench.execution.unfinished import Saving, forget, spoil, state_file, would_fail_again
from ftbench.files import AGAIN, disk_mend, write_json
from ftbench.memory.budget import lift_budget
from ftbench.memory.fit import is_out_of_memory
from ftbench.memory.heap import MODELS, import_for_good
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe, read_recipe
from ftbench.registry import Registry
from ftbench.results.result import BaselineFacts, Result, Status
from ftbench.results.store import MODEL, RECIPE, RESULT, Run, read_run
from ftbench.tracing import is_traced, say, trace, traced
from ftbench.training.sharding import Ranks


def main() -> None:
    """Carry out the run and write its result, whatever its end."""
    ranks = join()
    events = EventWriter(os.dup(1))
    events.end_with_reader()
    if not ranks.leads:
        events = EventWriter(os.open(os.devnull, os.O_WRONLY))
    os.dup2(2, 1)  # what libraries print goes to the log, not between the events
    given = _arguments()
    import_for_good(*MODELS, "sklearn.linear_model")
    work(given.folder, read_run(given.baseline) if given.baseline else None, given.save_every, events, ranks)


def work(folder: Path, baseline: Run | None, save_every: float, events: EventWriter, ranks: Ranks) -> None:
    """Carry out the run whose recipe is in a folder, and leave its result there.

    Args:
        folder: of the run.
        baseline: the untouched model's run.
        save_every: seconds of training after which its state is kept again; 0: never.
        events: told how far it is.
        ranks: the processes that do it together, of which this is one.

    Raises:
        FtbenchError: nothing can be written any more.
        SystemExit: the other ranks are to end, too.
    """
    recipe = read_recipe(str(folder / RECIPE))
    state = state_file(recipe, folder.parent)

    def tell(line: str) -> None:
        say(line)
        events.send(Traced(line))

    registry = traced(load_plugins(), tell)
    facts = Facts(baseline=_describe(baseline) if baseline else None)
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    status: Status = "ok"
    reason = None
    try:
        algorithm = registry.make(recipe.algorithm, recipe.options)
        if is_traced():
            _trace(algorithm, registry, tell)
        start = find_start(recipe, registry)
        beside = baseline.replies() if baseline else []
        saving = Saving(state, save_every) if save_every else None
        course = Course(recipe, algorithm, folder, events, facts, ranks)
        RunInProgress(course, registry, start, beside, saving).carry_out()
    except Exception as error:
        if facts.meter:  # while the error is told it holds the tensors that filled the budget
            lift_budget(facts.meter.device)
        if ranks.count > 1 and is_lost(error):
            raise
        status, reason = _judge_error(error, recipe, registry, facts)
        if facts.phase == TRAIN and would_fail_again(error, recipe):
            (forget if ranks.leads else spoil)(state)
        _drop_model(folder)
    result = build_result(recipe, registry, facts, status, reason, started)
    if status != "ok" and (folder / RESULT).is_file():  # by the rank that failed first
        sys.exit(1)
    if status != "ok" or ranks.leads:
        _write(folder, result)
    if status != "ok" and ranks.count > 1:  # ends the others
        sys.exit(1)


def _write(folder: Path, result: Result) -> None:
    """Write the result; where the disk has no room left for that, its figures are kept rather than its model."""
    try:
        write_json(folder / RESULT, result.model_dump(mode="json"))
    except FtbenchError as error:
        _drop_model(folder)
        failed = result.model_copy(update={"status": "failed", "reason": f"{error}; {AGAIN}", "phase": "result"})
        write_json(folder / RESULT, (failed if result.status == "ok" else result).model_dump(mode="json"))


def _drop_model(folder: Path) -> None:
    """Remove the model of a run that came to nothing, and write into the log what was raised."""
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    with suppress(OSError):  # the disk may be full
        traceback.print_exc()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--save-every", type=float, default=0.0)
    return parser.parse_args()


def _trace(algorithm: Algorithm, registry: Registry, tell: Callable[[str], None]) -> None:
    """Say what the algorithm does, and what those do that it takes its adapter from or leaves the task to."""
    for one in (algorithm, algorithm.adapter, algorithm.then):
        if one is not None:
            plugin = registry.plugin_of(one.name)
            trace(one, f"{plugin.name} {plugin.version}", tell)


def _describe(baseline: Run) -> BaselineFacts:
    result = baseline.result
    return BaselineFacts(run=baseline.folder.name, recipe_digest=result.recipe_digest, started=result.started)


def _judge_error(error: Exception, recipe: Recipe, registry: Registry, facts: Facts) -> tuple[Status, str]:
    """Tell an out-of-memory, whatever library raised it, from other failures; one line for either."""
    if is_out_of_memory(error):
        return "out-of-memory", explain_shortage(error, recipe, facts)
    if isinstance(error, Skip):
        return "skipped", " ".join(str(error).split())
    text = blame(error, registry, recipe.algorithm)
    mend = None if isinstance(error, FtbenchError) else disk_mend(error)
    return "failed", f"{text}; {mend} and {AGAIN}" if mend else text


if __name__ == "__main__":
    main()
