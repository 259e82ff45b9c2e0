"""How a worker ended, and what is said of a run for which it left no result."""

import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ftbench.errors import FtbenchError
from ftbench.execution.shortage import UNKNOWN
from ftbench.files import AGAIN
from ftbench.memory.fit import tells_of_exhaustion
from ftbench.recipe import Recipe
from ftbench.results.result import Status
from ftbench.results.store import LOG, MODEL

_LAST = 5
"""Lines of a log in which a library that ended the process would have said why."""


@dataclass(frozen=True)
class Ending:
    """A process's exit code (negative: the signal that ended it), its last phase, and whether its time was up."""

    code: int
    phase: str
    timed_out: bool


def explain(ending: Ending, folder: Path, recipe: Recipe) -> tuple[Status, str]:
    """Say why a worker left no result."""
    if not folder.is_dir():
        return "failed", f"its folder was removed while it ran; {AGAIN}"
    if ending.timed_out:
        return "timed-out", f"not finished after {recipe.time_limit:g} s"
    if ending.code == -signal.SIGKILL:
        killed = "the system killed the process (SIGKILL), as it does when memory runs out"
        return "out-of-memory", f"{killed}; {UNKNOWN}"
    lines: list[str] = []
    with suppress(OSError):
        lines = (folder / LOG).read_text("utf-8", "replace").strip().splitlines()
    how = f"the process crashed ({signal.Signals(-ending.code).name})" if ending.code < 0 else ""
    if shortage := next((line for line in lines[-_LAST:] if tells_of_exhaustion(line)), None):
        return "out-of-memory", f"{how or 'the process ended'}: {shortage.strip()[:300]}; {UNKNOWN}"
    if how:
        return "failed", f"{how}; see {LOG} in the run's folder"
    return "failed", f"the process ended with code {ending.code}: {lines[-1][:300] if lines else 'no output'}"


def remove_halves(folder: Path) -> None:
    """Remove what a worker that was killed may have written half."""
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    for path in folder.glob(".*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_store(out: Path, recipe: Recipe) -> None:
    """See that the folder of runs is still there.

    Raises:
        FtbenchError: it was removed, and with it what a run left there.
    """
    if not out.is_dir():
        raise FtbenchError(
            f"the folder of runs {out} was removed while {recipe.algorithm} ran, and what it held is gone; run the "
            "command again"
        )
