"""FTBENCH_TRACE=1: says which hooks were asked and what plugins' algorithms did, with the time that it took."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from ftbench.algorithm import Algorithm
from ftbench.observing import observe

VARIABLE = "FTBENCH_TRACE"
_LONGEST = 60


def is_traced() -> bool:
    """Whether the environment asks for it."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def say(line: str) -> None:
    """Write a line where it disturbs no script; in a run that is its log.txt."""
    if is_traced():
        print(f"ftbench trace: {line}", file=sys.stderr, flush=True)


def trace(algorithm: Algorithm, who: str, tell: Callable[[str], None] = say) -> None:
    """Say of every call of the algorithm's methods what it was given, what it returned, and how long it took.

    Args:
        algorithm: to look at.
        who: brings it: the plugin and its version.
        tell: is given each line.
    """
    observe(algorithm, _Calls(f"{who}: {type(algorithm).__qualname__}", tell).around)


class _Calls:
    """Calls of one algorithm's methods; those of the loss are too many for a line each, and are added up."""

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        self._name, self._tell = name, tell
        self._losses, self._seconds = 0, 0.0

    def around(self, method: str, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        """Make a call, and say what came of it, whatever its end."""
        start = perf_counter()
        given = ", ".join(map(_brief, arguments))
        try:
            result = call()
        except BaseException as error:
            self._tell(f"{self._name}.{method}({given}) raised {type(error).__name__} ({perf_counter() - start:.2f} s)")
            raise
        seconds = perf_counter() - start
        if method == "loss":
            self._losses, self._seconds = self._losses + 1, self._seconds + seconds
            return result
        if method == "train" and self._losses:
            self._tell(f"{self._name}.loss: {self._losses} calls ({self._seconds:.2f} s)")
        self._tell(f"{self._name}.{method}({given}) -> {_brief(result)} ({seconds:.2f} s)")
        return result


def _brief(value: Any) -> str:
    """Write plain values as they are, and of everything else the type."""
    if value is None or isinstance(value, bool | int | float | str | Path | dict):
        text = repr(str(value) if isinstance(value, Path) else value)
        return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return type(value).__name__
