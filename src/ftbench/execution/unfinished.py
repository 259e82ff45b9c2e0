"""Trainings under way: the one file beside the runs from which a killed one goes on."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ftbench.recipe import Recipe
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


def forget(path: Path) -> None:
    """Remove a state, what was half written of it, and what nobody took up for a month.

    What a living process keeps is left alone: it holds the lock beside it.
    """
    with suppress(OSError):
        old = time.time() - _DAYS * 86400
        names = {other.name.partition(_SUFFIX)[0] + _SUFFIX for other in path.parent.glob(f"{_PREFIX}*")}
        for state in (path.with_name(name) for name in names):
            if state == path or _newest(state) < old:
                _remove(state)


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
