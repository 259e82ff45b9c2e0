"""When, where and of which code a recorded row is."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ftbench.execution.environment import choose_device, describe

MACHINE = ("hardware", "cores", "threads", "versions")
"""What rows must share to be put together."""


def now() -> str:
    """Return the time as rows have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine(device: str) -> dict[str, Any]:
    """Return what a row's `environment` says of "cpu" or "cuda" and the code."""
    return describe(choose_device(device), "-").model_dump(include={*MACHINE, "code"})


def rows_of(path: Path, here: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a file that are of this machine; none where there is no file."""
    every = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in every if all(row["environment"][fact] == here[fact] for fact in MACHINE)]
