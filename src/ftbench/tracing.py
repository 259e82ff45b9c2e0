"""FTBENCH_TRACE=1: says which hooks were asked and what plugins' classes did, with the time that it took."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from inspect import getattr_static
from pathlib import Path
from time import perf_counter
from types import new_class
from typing import Any

from ftbench.algorithm import Algorithm
from ftbench.data.sources import DataSource
from ftbench.data.task import Task
from ftbench.evaluation.judge import Judge
from ftbench.models.resolve import ModelSource
from ftbench.observing import observe
from ftbench.registry import Registry
from ftbench.results.report.section import ReportSection

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


BASES: dict[str, type[Any]] = {
    "tasks": Task,
    "data": DataSource,
    "models": ModelSource,
    "judges": Judge,
    "report_sections": ReportSection,
}
"""What plugins bring besides algorithms and commands, by the field of `Plugin`."""
_OFTEN = ("is_on_topic",)
"""Methods that are called too often for a line each."""


def traced(registry: Registry, tell: Callable[[str], None] = say) -> Registry:
    """Return the plugins with their tasks, data, models, judges and sections told of as `trace` does of an algorithm.

    Args:
        registry: to look at; returned as it is where the environment does not ask for it.
        tell: is given each line.
    """
    if not is_traced():
        return registry
    plugins = []
    for plugin in registry.plugins:
        who = f"{plugin.name} {plugin.version}"
        brought: dict[str, Any] = {
            field: tuple(_traced(kind, base, who, tell) for kind in getattr(plugin, field))
            for field, base in BASES.items()
        }
        plugins.append(replace(plugin, **brought))
    return replace(registry, plugins=tuple(plugins))


def _traced(kind: type[Any], base: type[Any], who: str, tell: Callable[[str], None]) -> type[Any]:
    """Return a subclass of a class, by the same name, that tells of the methods of `base` that the class writes."""
    calls = _Calls(f"{who}: {kind.__qualname__}", tell)

    def told(method: str) -> Any:
        def call(this: Any, *arguments: Any, **named: Any) -> Any:
            own = getattr(super(made, this), method)
            return calls.around(method, arguments, lambda: own(*arguments, **named))

        return classmethod(call) if isinstance(vars(base)[method], classmethod) else call

    public = [name for name in vars(base) if name[0] != "_" and callable(getattr(base, name))]
    written = [name for name in public if getattr_static(kind, name) is not vars(base)[name] and name not in _OFTEN]
    body = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {name: told(name) for name in written}
    made = new_class(kind.__name__, (kind,), exec_body=lambda space: space.update(body))
    return made


class _Calls:
    """Calls of one class's methods; those of a loss are too many for a line each, and are added up."""

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
