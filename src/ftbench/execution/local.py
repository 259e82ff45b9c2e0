"""Starts a worker for a recipe, listens to it, and publishes what it leaves."""

import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ftbench.execution.blame import blame
from ftbench.execution.events import START, Event, PhaseBegan, read_event
from ftbench.execution.outcome import build_result
from ftbench.execution.phases import Facts
from ftbench.execution.ranks import worker_module
from ftbench.execution.reporting import reporting
from ftbench.execution.unfinished import forget, state_file
from ftbench.execution.workers import Stopped, Workers
from ftbench.files import write_json, write_text
from ftbench.recipe import Recipe
from ftbench.registry import Registry
from ftbench.results.result import Result, Status, Tuning
from ftbench.results.store import LAUNCH, LOG, MODEL, RECIPE, RESULT, Run, publish, read_run, staging

PROMPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**20),
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
"""A worker's environment, so that memory that is freed goes back at once, as a limit on a process counts it.

glibc keeps freed blocks below a threshold that it raises by itself, up to 32 MiB. oneDNN keeps a kernel of about 1 MB
for each of the last 1024 shapes it met, and rows without padding have a new shape in each step. Both together held
2.8 GiB beside 1.1 GiB of tensors; letting them go costs a few percent of the speed.
"""


def _shown_devices(count: int) -> dict[str, str]:
    """Show the run so many cards alone: a trainer of an algorithm's own would spread over all that it sees."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))
    return {"CUDA_VISIBLE_DEVICES": ",".join(seen.split(",")[:count])}


@dataclass(frozen=True)
class Place:
    """What a run has of the machine: variables of its worker's environment, and who ends the worker.

    `ident` names the launch where one may be tried several times: only one of them leaves a run.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    workers: Workers = field(default_factory=Workers)
    ident: str | None = None


@dataclass(frozen=True)
class _Ending:
    code: int
    phase: str
    timed_out: bool


def launch(
    recipe: Recipe,
    registry: Registry,
    out: Path,
    baseline: Run | None,
    on_event: Callable[[Event], None],
    tuning: Tuning | None = None,
    *,
    save_every: float = 0.0,
    fresh: bool = False,
    report_to: Sequence[str] = (),
    place: Place | None = None,
) -> Run:
    """Run a recipe in a process of its own and publish the run, whatever its end.

    Ctrl-C (KeyboardInterrupt) ends the worker and leaves no run behind, only the state that its training was kept in.

    Args:
        recipe: what to run.
        registry: the plugins.
        out: the folder of runs.
        baseline: the untouched model's run on the same task.
        on_event: is told how far it is.
        tuning: how the recipe's learning rate was chosen; the result says it.
        save_every: seconds of training after which its state is kept again, to go on from at the next launch; 0: never.
        fresh: whether training begins anew, whatever is kept of it.
        report_to: the tools that are told of it; see `reporting.read_tools`.
        place: what it has of the machine; by default one device, and all of the processor.

    Raises:
        Stopped: the worker was ended from outside, and leaves what Ctrl-C does.
        FtbenchError: `out` cannot be written.
    """
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    state = state_file(recipe, out)
    place = place or Place()
    if fresh:
        forget(state)
    with staging(out) as folder:
        write_text(folder / RECIPE, recipe.to_toml())
        if place.ident:
            write_text(folder / LAUNCH, place.ident + "\n")
        verdict = _ask_skip(folder, recipe, registry)
        if verdict is not None:
            _write(folder, build_result(recipe, registry, Facts(), *verdict, started))
        else:
            with reporting(report_to, recipe, out, folder) as told:
                listen = told.beside(on_event) if told else on_event
                ending = _work(folder, recipe, baseline, listen, save_every, place)
                if not (folder / RESULT).is_file():
                    _remove_halves(folder)
                    status, reason = _explain(ending, folder, recipe)
                    facts = Facts(phase=ending.phase)
                    _write(folder, build_result(recipe, registry, facts, status, reason, started))
                if told:
                    result = read_run(folder).result
                    _write(folder, result.model_copy(update={"warnings": result.warnings + told.end(result)}))
        if tuning is not None:
            _write(folder, read_run(folder).result.model_copy(update={"tuning": tuning}))
        published = publish(folder, out, recipe)
    forget(state)
    return read_run(published)


def publish_failure(
    recipe: Recipe, registry: Registry, out: Path, tuning: Tuning | None, reason: str, ident: str
) -> Run:
    """Publish that a launch came to no run, unless it did.

    Raises:
        FtbenchError: `out` cannot be written.
    """
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    with staging(out) as folder:
        write_text(folder / RECIPE, recipe.to_toml())
        write_text(folder / LAUNCH, ident + "\n")
        result = build_result(recipe, registry, Facts(), "failed", reason, started)
        _write(folder, result.model_copy(update={"tuning": tuning}))
        return read_run(publish(folder, out, recipe))


def _write(folder: Path, result: Result) -> None:
    write_json(folder / RESULT, result.model_dump(mode="json"))


def _ask_skip(folder: Path, recipe: Recipe, registry: Registry) -> tuple[Status, str] | None:
    """Ask the algorithm whether it applies; None where it does."""
    algorithm = registry.make(recipe.algorithm, recipe.options)
    try:
        reason = algorithm.skip(recipe)
    except Exception as error:  # a stranger's code may raise anything
        write_text(folder / LOG, traceback.format_exc())
        return "failed", blame(error, registry.find(recipe.algorithm), registry.plugin_of(recipe.algorithm))
    return None if reason is None else ("skipped", " ".join(str(reason).split()))


def _remove_halves(folder: Path) -> None:
    """Remove what a worker that was killed may have written half."""
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    for path in folder.glob(".*"):
        path.unlink()


def _work(
    folder: Path,
    recipe: Recipe,
    baseline: Run | None,
    on_event: Callable[[Event], None],
    save_every: float,
    place: Place,
) -> _Ending:
    command = [sys.executable, "-m", *worker_module(recipe.devices), str(folder), "--save-every", str(save_every)]
    if baseline:
        command += ["--baseline", str(baseline.folder)]
    phase, timed_out = START, threading.Event()
    variables = {
        **_shown_devices(recipe.devices),
        **PROMPT_MEMORY,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **place.variables,
    }
    with (folder / LOG).open("wb") as log:
        worker = place.workers.start(command, log, variables)

        def end() -> None:
            timed_out.set()
            place.workers.end(worker)

        timer = threading.Timer(recipe.time_limit or 0, end)
        try:
            on_event(PhaseBegan(phase))
            if recipe.time_limit:
                timer.start()
            assert worker.stdout is not None
            for line in worker.stdout:
                event = read_event(line)
                if event:
                    phase = event.phase if isinstance(event, PhaseBegan) else phase
                    on_event(event)
            ending = _Ending(worker.wait(), phase, timed_out.is_set())
        finally:
            timer.cancel()
            place.workers.end(worker)
    if place.workers.stopped:
        raise Stopped
    return ending


def _explain(ending: _Ending, folder: Path, recipe: Recipe) -> tuple[Status, str]:
    """Say why a worker left no result."""
    if ending.timed_out:
        return "timed-out", f"not finished after {recipe.time_limit:g} s"
    if ending.code == -signal.SIGKILL:
        return "out-of-memory", "the system killed the process (SIGKILL), as it does when memory runs out"
    if ending.code < 0:
        return "failed", f"the process crashed ({signal.Signals(-ending.code).name}); see {LOG} in the run's folder"
    lines = (folder / LOG).read_text("utf-8", "replace").strip().splitlines()
    return "failed", f"the process ended with code {ending.code}: {lines[-1][:300] if lines else 'no output'}"
