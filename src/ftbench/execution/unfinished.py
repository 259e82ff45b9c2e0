"""Trainings under way: the file beside the runs from which a killed one goes on, and those that belong to it."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ftbench.files import disk_mend
from ftbench.memory.fit import is_out_of_memory
from ftbench.recipe import Recipe
from ftbench.results.result import Status
from ftbench.results.store import run_name

_PREFIX = ".training-"
_SUFFIX = ".safetensors"
_DAYS = 30
"""After which the state of a training that nobody took up is removed."""


@dataclass(frozen=True)
class Saving:
    """Where the state of a training is kept, and how many seconds of training lie between two times."""

    path: Path
    every: float


def state_file(recipe: Recipe, out: Path) -> Path:
    """Return where the state of a recipe's training is kept."""
    return out / f"{_PREFIX}{run_name(recipe)}{_SUFFIX}"


def is_of_use(status: Status) -> bool:
    """Whether a run that ended so may be helped by what is kept of its training.

    What was over is of no use; nor is it to a run that its own time limit ended, which would then have had it twice. A
    run that failed or ran out of memory may have done so before its training or after, or been killed. Whether the
    training itself was at fault, `would_fail_again` says where it is known.
    """
    return status in ("failed", "out-of-memory")


def would_fail_again(error: Exception, recipe: Recipe) -> bool:
    """Whether what training raised would be raised again if it went on from its state, on this machine or another.

    The disk may be mended, and memory without a budget be there another time. All else is the algorithm's own doing:
    once that is changed, its state would be one that the old code has made.
    """
    if disk_mend(error):
        return False
    return recipe.memory_budget is not None or not is_out_of_memory(error)


def forget(path: Path) -> None:
    """Remove a state, what was half written of it, and what nobody took up for a month.

    What a living process keeps is left alone: it holds the lock beside it. So is what seems to be of the future: the
    clock was set back since.
    """
    with suppress(OSError):
        old = time.time() - _DAYS * 86400
        names = {other.name.partition(_SUFFIX)[0] + _SUFFIX for other in path.parent.glob(f"{_PREFIX}*")}
        for state in (path.with_name(name) for name in names):
            if state == path or _newest(state) < old:
                _remove(state)


def spoil(path: Path) -> None:
    """See that nobody takes up a state that another process keeps, which ends together with this one."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _newest(state: Path) -> float:
    return max((other.stat().st_mtime for other in state.parent.glob(f"{state.name}*")), default=0.0)


def _remove(state: Path) -> None:
    """Remove a state and its halves, unless somebody keeps it; the lock goes last, while it is held."""
    lock = FileLock(state.with_name(f"{state.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return
    try:
        for other in state.parent.glob(f"{state.name}*"):
            if other.is_dir():  # in which a process that was killed was writing
                shutil.rmtree(other, ignore_errors=True)
            else:
                other.unlink(missing_ok=True)
    finally:
        lock.release()
