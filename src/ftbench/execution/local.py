"""Starts a worker for a recipe, listens to it, and publishes what it leaves."""

import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ftbench.errors import FtbenchError
from ftbench.execution.blame import blame
from ftbench.execution.ending import Ending, check_store, explain, remove_halves
from ftbench.execution.events import START, Event, PhaseBegan, read_event
from ftbench.execution.facts import Facts
from ftbench.execution.outcome import build_result
from ftbench.execution.ranks import worker_module
from ftbench.execution.reporting import reporting
from ftbench.execution.unfinished import forget, is_of_use, state_file
from ftbench.execution.workers import Stopped, Workers
from ftbench.files import AGAIN, told_in_one_line, write_json, write_text
from ftbench.memory.heap import prompt_memory
from ftbench.recipe import Recipe
from ftbench.registry import Registry
from ftbench.results.result import Result, Status, Tuning
from ftbench.results.store import LAUNCH, LOG, RECIPE, RESULT, Run, of_launch, publish, read_run, staging
from ftbench.waiting import brief_waiting


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
    That state is left, too, where the run came to nothing and could go on from it.

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
        FtbenchError: `out` cannot be written, or was removed meanwhile; `baseline` was; another try of the same launch
            has begun since, and this one leaves nothing.
    """
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    state = state_file(recipe, out)
    if baseline and not (baseline.folder / RESULT).is_file():
        raise FtbenchError(
            f"{baseline.folder}, which {recipe.algorithm} is to be measured against, was removed meanwhile; run the "
            "command again"
        )
    place = place or Place()
    if fresh:
        forget(state)
    with staging(out) as folder:
        _write_asked(folder, recipe, place.ident)
        verdict = _ask_skip(folder, recipe, registry)
        if verdict is not None:
            _write(folder, build_result(recipe, registry, Facts(), *verdict, started))
        else:
            with reporting(report_to, recipe, out, folder) as told:
                listen = told.beside(on_event) if told else on_event
                ending = _work(folder, recipe, baseline, listen, save_every, place)
                if not (folder / RESULT).is_file():
                    check_store(out, recipe)
                    _check_owner(folder, recipe, place.ident)
                    status, reason = explain(ending, folder, recipe)
                    remove_halves(folder)
                    if not folder.is_dir():
                        _write_asked(folder, recipe, None)
                    facts = Facts(phase=ending.phase)
                    _write(folder, build_result(recipe, registry, facts, status, reason, started))
                if told:
                    result = read_run(folder).result
                    if more := told.end(result):  # each write needs room beside what is there
                        _write(folder, result.model_copy(update={"warnings": result.warnings + more}))
        _check_owner(folder, recipe, place.ident)
        if tuning is not None:
            _write(folder, read_run(folder).result.model_copy(update={"tuning": tuning}))
        published = publish(folder, out, recipe)
    run = read_run(published)
    if not is_of_use(run.result.status) or not state.exists():  # what then lies beside is of no use either
        forget(state)
    return run


def publish_failure(
    recipe: Recipe, registry: Registry, out: Path, tuning: Tuning | None, status: Status, reason: str, ident: str
) -> Run:
    """Publish that a launch came to no run, unless it did.

    Raises:
        FtbenchError: `out` cannot be written.
    """
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    with staging(out) as folder:
        _write_asked(folder, recipe, ident)
        result = build_result(recipe, registry, Facts(), status, reason, started)
        _write(folder, result.model_copy(update={"tuning": tuning}))
        return read_run(publish(folder, out, recipe))


def _write_asked(folder: Path, recipe: Recipe, ident: str | None) -> None:
    """Write down what is to be run and, if it has a name, of which launch; also into a folder that was removed."""
    with told_in_one_line(folder):
        folder.mkdir(exist_ok=True)
    write_text(folder / RECIPE, recipe.to_toml())
    if ident:
        write_text(folder / LAUNCH, ident + "\n")


def _check_owner(folder: Path, recipe: Recipe, ident: str | None) -> None:
    """See that this is still the one try of a launch that may publish: a later one takes the folder of an earlier away.

    Raises:
        FtbenchError: it is not.
    """
    if ident and of_launch(folder) != ident:
        raise FtbenchError(
            f"{folder}, into which {recipe.algorithm} was run, was taken away: it was taken for lost and is run "
            f"elsewhere, or somebody removed it; then {AGAIN}"
        )


def _write(folder: Path, result: Result) -> None:
    write_json(folder / RESULT, result.model_dump(mode="json"))


def _ask_skip(folder: Path, recipe: Recipe, registry: Registry) -> tuple[Status, str] | None:
    """Ask the algorithm whether it applies; None where it does."""
    algorithm = registry.make(recipe.algorithm, recipe.options)
    try:
        reason = algorithm.skip(recipe)
    except Exception as error:  # a stranger's code may raise anything
        write_text(folder / LOG, traceback.format_exc())
        return "failed", blame(error, registry, recipe.algorithm)
    return None if reason is None else ("skipped", " ".join(str(reason).split()))


def _work(
    folder: Path,
    recipe: Recipe,
    baseline: Run | None,
    on_event: Callable[[Event], None],
    save_every: float,
    place: Place,
) -> Ending:
    command = [sys.executable, "-m", *worker_module(recipe.devices), str(folder), "--save-every", str(save_every)]
    if baseline:
        command += ["--baseline", str(baseline.folder)]
    phase, timed_out = START, threading.Event()
    variables = {
        **_shown_devices(recipe.devices),
        **prompt_memory(limited=recipe.memory_budget is not None),
        **brief_waiting(),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **place.variables,
    }
    with told_in_one_line(folder / LOG):
        log = (folder / LOG).open("wb")
    with log:
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
            ending = Ending(worker.wait(), phase, timed_out.is_set())
        finally:
            timer.cancel()
            place.workers.end(worker)
    if place.workers.stopped:
        raise Stopped
    return ending
