"""Whose fault it was: names the plugin, the method and the line where a plugin's own code raised."""

import sys
import traceback
from pathlib import Path
from types import CodeType

from ftbench.algorithm import Algorithm
from ftbench.errors import ContractError, FtbenchError
from ftbench.registry import Plugin

LONGEST = 300
"""Characters of what a stranger's error says."""


def blame(error: Exception, algorithm: type[Algorithm], plugin: Plugin) -> str:
    """Say in one line what was raised and, where it was the plugin's doing, by which plugin and method.

    Args:
        error: with its traceback.
        algorithm: that was run.
        plugin: that brings it.
    """
    text = " ".join(str(error).split())[:LONGEST]
    if isinstance(error, FtbenchError) and not isinstance(error, ContractError):
        return text
    method = error.where if isinstance(error, ContractError) else None
    if not isinstance(error, ContractError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    found = _last_of_plugin(error, algorithm)
    if method is None and found is None:
        return f"{_named(plugin)}: {text}" if isinstance(error, ContractError) else text
    where = f"{algorithm.__qualname__}.{method}" if method and "." not in method else method or ""
    if found is not None and method is None:
        code, line = found
        where = f"{code.co_qualname} (line {line} of {Path(code.co_filename).name})"
    return f"{_named(plugin)}, {where}: {text}"


def _named(plugin: Plugin) -> str:
    return f"plugin {plugin.name} {plugin.version}"


def _last_of_plugin(error: Exception, algorithm: type[Algorithm]) -> tuple[CodeType, int] | None:
    """Return the code of the algorithm's own module, or package, that was entered last, and its line."""
    top = sys.modules[algorithm.__module__.partition(".")[0]]
    home = Path(getattr(top, "__file__", None) or "")
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if path == home or (home.name == "__init__.py" and path.is_relative_to(home.parent)):
            found = frame.f_code, line
    return found
