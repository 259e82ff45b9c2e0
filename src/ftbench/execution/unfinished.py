"""Trainings under way: the one file beside the runs from which a killed one goes on."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ftbench.recipe import Recipe
from ftbench.results.store import run_name

_PREFIX = ".training-"
_DAYS = 30
"""After which the state of a training that nobody took up is removed."""


@dataclass(frozen=True)
class Saving:
    """Where the state of a training is kept, and how many seconds of training lie between two times."""

    path: Path
    every: float


def state_file(recipe: Recipe, out: Path) -> Path:
    """Return where the state of a recipe's training is kept."""
    return out / f"{_PREFIX}{run_name(recipe)}.safetensors"


def forget(path: Path) -> None:
    """Remove a state, what was half written of it, and what nobody took up for a month."""
    with suppress(OSError):
        old = time.time() - _DAYS * 86400
        for other in path.parent.glob(f"{_PREFIX}*"):
            if other.name.startswith(path.name) or other.stat().st_mtime < old:
                other.unlink(missing_ok=True)
