"""Whose fault it was: names the plugin, the method and the line where a plugin's own code raised."""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import CodeType

from ftbench.errors import ContractError, FtbenchError
from ftbench.registry import Plugin, Registry

LONGEST = 300
"""Characters of what a stranger's error says."""
_CORE = "ftbench"


def blame(error: Exception, registry: Registry, name: str) -> str:
    """Say in one line what a run raised and, where it was a plugin's doing, which plugin's and which method's.

    Args:
        error: with its traceback.
        registry: of the plugins.
        name: of the algorithm that was run: its plugin comes first, then those of its data, task and judge.
    """
    if isinstance(error, FtbenchError) and not isinstance(error, ContractError):
        return _text(error)
    algorithm, plugin = registry.find(name), registry.plugin_of(name)
    if not isinstance(error, ContractError):
        return _said(error, [plugin, *registry.plugins]) or _raised(error)
    if error.where:
        where = error.where if "." in error.where else f"{algorithm.__qualname__}.{error.where}"
        return f"{_named(plugin)}, {where}: {_text(error)}"
    entered = _last_of(error, plugin)
    where = f", {_place(*entered)}" if entered else ""
    return f"{_named(plugin)}{where}: {_text(error)}"


def whose(error: Exception, registry: Registry) -> str | None:
    """Say in one line which plugin raised an error, and where; None where none did."""
    return _said(error, registry.plugins)


def _said(error: Exception, plugins: Sequence[Plugin]) -> str | None:
    for plugin in plugins:
        entered = _last_of(error, plugin)
        if entered:
            return f"{_named(plugin)}, {_place(*entered)}: {_raised(error)}"
    return None


def _text(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST]


def _raised(error: Exception) -> str:
    text = _text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _named(plugin: Plugin) -> str:
    return f"plugin {plugin.name} {plugin.version}"


def _place(code: CodeType, line: int) -> str:
    return f"{code.co_qualname} (line {line} of {Path(code.co_filename).name})"


def _last_of(error: Exception, plugin: Plugin) -> tuple[CodeType, int] | None:
    """Return the code of the plugin's own modules, or packages, that was entered last, and its line."""
    tops = [sys.modules[name] for name in plugin.modules - {_CORE} if name in sys.modules]
    homes = [Path(top.__file__) for top in tops if top.__file__]
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if any(path == home or (home.name == "__init__.py" and path.is_relative_to(home.parent)) for home in homes):
            found = frame.f_code, line
    return found
