"""Passes a run's figures on to the tools that people watch theirs with, by a process beside the run.

The tools' own code runs there and nowhere else: training does not wait for it, and it can neither end a run nor change
what one computes. What a tool cannot take costs a warning.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ftbench.errors import UsageError, nearest
from ftbench.execution.events import Event, Progress
from ftbench.files import told_in_one_line
from ftbench.recipe import Recipe
from ftbench.results.address import OUTBOX
from ftbench.results.result import Result
from ftbench.results.store import run_name

REPORTING = "reporting.txt"
"""What the tools print, in the run's folder."""
UNSENT = Path("runs")
"""Where tools write their files for runs that are sent to a URL, which has no place for them."""
PATIENCE = 60.0
"""Seconds that a run waits for its tools, before it begins and once it is over."""
_WATCHERS = {"codecarbon", "flyte", "kubeflow"}
"""They take no figures, but look at the process that they are in."""
_PACKAGES = {"azure_ml": "azureml-core mlflow", "comet_ml": "comet-ml"}

Hear = Callable[[Event], None]


def read_tools(given: str | None) -> tuple[str, ...]:
    """Return the names in a list with commas between them, each once.

    Raises:
        UsageError: transformers knows no such tool, or it is not installed.
    """
    if given is None:
        return ()
    from transformers.integrations import integration_utils as known

    tools = tuple(dict.fromkeys(name.strip().lower() for name in given.split(",")))
    names = set(known.INTEGRATION_TO_CALLBACK) - _WATCHERS
    installed = known.get_available_reporting_integrations()
    for tool in tools:
        if tool not in names:
            raise UsageError(f"--report-to: no such tool '{tool}'; {nearest(tool, names)}")
        if tool not in installed:
            raise UsageError(f"--report-to: {tool} is not installed; pip install {_PACKAGES.get(tool, tool)}")
    return tools


class Reporting:
    """What the launcher says to the tools' process; `end` tells what came of it."""

    def __init__(self, process: "subprocess.Popen[str]", tools: Sequence[str]) -> None:
        self._process = process
        self._names = ", ".join(tools)
        self._said: list[str] = []
        self._ready = threading.Event()
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def begin(self, about: dict[str, Any]) -> None:
        """Say what the run is, and wait until the tools have heard it: what they load then, no training waits for."""
        self._say(about)
        self._ready.wait(PATIENCE)

    def beside(self, hear: Hear) -> Hear:
        """Return what hears a run's events instead, and passes its steps on."""

        def hear_both(event: Event) -> None:
            if isinstance(event, Progress) and event.row is not None:
                more = {"tokens_per_second": event.tokens_per_second, "peak_memory_bytes": event.memory}
                self._say({"step": event.row["step"], "logs": _numbers(event.row | more)})
            hear(event)

        return hear_both

    def end(self, result: Result) -> list[str]:
        """Say what the run came to; return a line for each tool that did not take everything."""
        self._say({"logs": final_figures(result)})
        if not self._close():
            return [f"--report-to {self._names}: not done {PATIENCE:g} s after the run; see {REPORTING}"]
        if self._process.returncode and not self._said:
            return [f"--report-to {self._names}: ended with code {self._process.returncode}; see {REPORTING}"]
        return [f"--report-to {line}" for line in self._said]

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _say(self, line: dict[str, Any]) -> None:
        self._lines.put(json.dumps(line))

    def _close(self) -> bool:
        """Let the process take what it was told, and end; False if it does not in time."""
        self._lines.put(None)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return False
        for thread in self._threads:
            thread.join(PATIENCE)
        return True

    def _write(self) -> None:
        """Write what is said, in a thread: the run does not stand still when a tool does."""
        assert self._process.stdin is not None
        with suppress(OSError):  # the process is gone
            for line in iter(self._lines.get, None):
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
            self._process.stdin.close()

    def _read(self) -> None:
        """Read that the tools are ready, and then what they could not take."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if self._ready.is_set() or line.strip():
                self._said.append(line.strip())
            else:
                self._ready.set()
        self._ready.set()


@contextmanager
def reporting(tools: Sequence[str], recipe: Recipe, out: Path, folder: Path) -> Iterator[Reporting | None]:
    """Start the tools' process for a run, and end it; None where there are no tools.

    Args:
        tools: as `read_tools` returns them.
        recipe: of the run.
        out: the folder of runs, in which tools that write files write them; of runs that are sent to a URL they are
            written into UNSENT, where somebody finds them.
        folder: of the run.
    """
    if not tools:
        yield None
        return
    with told_in_one_line(folder / REPORTING):
        log = (folder / REPORTING).open("wb")
    with log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ftbench.execution.reporter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the launcher alone
        )
    held = Reporting(process, tools)
    try:
        config = {**recipe.model_dump(mode="json", exclude_none=True), "recipe_digest": recipe.digest()}
        place = UNSENT if out.name == OUTBOX else out
        held.begin({"tools": list(tools), "name": run_name(recipe), "folder": str(place.resolve()), "config": config})
        yield held
    finally:
        held.stop()


def final_figures(result: Result) -> dict[str, float]:
    """Return what a run came to: shares and losses of evaluation, and the figures of training where they ended."""
    measures = result.measures
    asked = {
        "adherence": measures.adherence,
        "adherence_under_attack": measures.adherence_under_attack,
        "distinct": measures.distinct,
        "degenerate": measures.degenerate,
        "forgetting": measures.forgetting,
    }
    trained = {
        "tokens": measures.training_tokens,
        "seconds": measures.training_seconds,
        "tokens_per_second": measures.tokens_per_second,
        "peak_memory_bytes": measures.peak_memory_bytes,
    }
    return _numbers({f"eval_{name}": value.mean for name, value in asked.items() if value} | trained)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
