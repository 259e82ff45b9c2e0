"""One run in one process: `python -m ftbench.execution.worker FOLDER [BASELINE]`.

FOLDER holds recipe.toml; the worker leaves there the result and all else that a run leaves. BASELINE is the folder of
the finished run of the untouched model, from which forgetting is counted and whose replies are set beside.
"""

import os
import shutil
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from ftbench.errors import FtbenchError, Skip
from ftbench.execution.events import EventWriter
from ftbench.execution.outcome import build_result
from ftbench.execution.phases import Facts, RunInProgress
from ftbench.execution.starting import find_start
from ftbench.files import write_json
from ftbench.memory.budget import format_bytes
from ftbench.memory.fit import is_out_of_memory
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe, read_recipe
from ftbench.results.result import BaselineFacts, MemoryPlan, Status
from ftbench.results.store import MODEL, RECIPE, RESULT, Run, read_run


def main() -> None:
    """Carry out the run and write its result, whatever its end."""
    events = EventWriter(os.dup(1))
    events.end_with_reader()
    os.dup2(2, 1)  # what libraries print goes to the log, not between the events
    folder = Path(sys.argv[1])
    baseline = read_run(Path(sys.argv[2])) if len(sys.argv) > 2 else None
    recipe = read_recipe(str(folder / RECIPE))
    registry = load_plugins()
    facts = Facts(baseline=_describe(baseline) if baseline else None)
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    status: Status = "ok"
    reason = None
    try:
        algorithm = registry.make(recipe.algorithm, recipe.options)
        start = find_start(recipe, registry)
        beside = baseline.replies() if baseline else []
        judge = registry.find_judge(recipe.judge)
        RunInProgress(recipe, algorithm, judge, start, folder, beside, events, facts).carry_out()
    except Exception as error:
        status, reason = _judge_error(error, recipe, facts.memory_plan)
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        with suppress(OSError):  # the disk may be full
            traceback.print_exc()
    result = build_result(recipe, registry, facts, status, reason, started)
    write_json(folder / RESULT, result.model_dump(mode="json"))


def _describe(baseline: Run) -> BaselineFacts:
    result = baseline.result
    return BaselineFacts(run=baseline.folder.name, recipe_digest=result.recipe_digest, started=result.started)


def _judge_error(error: Exception, recipe: Recipe, plan: MemoryPlan | None) -> tuple[Status, str]:
    """Tell an out-of-memory, whatever library raised it, from other failures; one line for either."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        budget = f" under a budget of {format_bytes(recipe.memory_budget)}" if recipe.memory_budget else ""
        needed = plan.needed_bytes if plan and not plan.fits else None
        advice = f"; {format_bytes(needed)} should do (predicted)" if needed else ""
        return "out-of-memory", f"an allocation failed{budget}{advice}: {text[:200] or type(error).__name__}"
    if isinstance(error, Skip):
        return "skipped", text
    if isinstance(error, FtbenchError):
        return "failed", text
    return "failed", f"{type(error).__name__}: {text[:300]}"


if __name__ == "__main__":
    main()
