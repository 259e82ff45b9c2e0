"""Finds plugins by the entry-point group `ftbench`; one that fails to load is reported, never fatal.

What the core itself ships (`SHIPPED`) comes through the same hooks, as one plugin more.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from time import perf_counter
from types import ModuleType
from typing import Any

import pluggy

from ftbench import hookspecs
from ftbench.contract import (
    check_algorithm,
    check_command,
    check_data,
    check_judge,
    check_model,
    check_report_section,
    check_task,
)
from ftbench.errors import FtbenchError
from ftbench.registry import Plugin, Registry
from ftbench.tracing import say

GROUP = "ftbench"
SHIPPED = (EntryPoint("shipped", "ftbench.shipped", GROUP),)
"""Not an entry point of the installation: an older one beside newer code would leave no judge."""


_KINDS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "algorithms": ("algorithm", check_algorithm),
    "tasks": ("task", check_task),
    "data": ("data", check_data),
    "models": ("model", check_model),
    "judges": ("judge", check_judge),
    "commands": ("command", check_command),
    "report_sections": ("report section", check_report_section),
}
"""What plugins bring, by the hook `ftbench_…` and the field of `Plugin`: its word, and what refuses all else."""


def load_plugins(entries: Sequence[EntryPoint] | None = None) -> Registry:
    """Load every plugin, each by itself, and what the core ships.

    Where two claim one name the first keeps it; the core's comes first, then distributions in the order of their
    names, those that begin with "ftbench-" first.

    Args:
        entries: the entry points to load; by default those installed.
    """
    found = entry_points(group=GROUP) if entries is None else entries
    unique = {(_distribution(entry), entry.name): entry for entry in found}
    order = sorted(unique.items(), key=lambda item: (not item[0][0].startswith("ftbench-"), item[0]))
    plugins: list[Plugin] = []
    warnings: list[str] = []
    taken: dict[tuple[str, str], str] = {}
    for entry in (*SHIPPED, *(entry for _, entry in order)):
        distribution = _distribution(entry)
        try:
            plugin = _load(entry, distribution)
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            warnings.append(f"plugin {distribution} is left out: {_one_line(error)}")
            continue
        kept: dict[str, Any] = {}
        for field, (word, _) in _KINDS.items():
            own: dict[str, Any] = {}
            for each in getattr(plugin, field):
                first = taken.setdefault((word, each.name), distribution)
                if first == distribution and each.name not in own:
                    own[each.name] = each
                else:
                    warnings.append(f"plugin {distribution}: {word} '{each.name}' is left out: {first} has that name")
            kept[field] = tuple(own.values())
        plugins.append(replace(plugin, **kept))
    return Registry(tuple(plugins), tuple(warnings))


def _distribution(entry: EntryPoint) -> str:
    return GROUP if entry in SHIPPED else entry.dist.name if entry.dist else entry.value


def _load(entry: EntryPoint, distribution: str) -> Plugin:
    requires = _compatible(entry)
    start = perf_counter()
    module: ModuleType | Any = entry.load()
    manager = pluggy.PluginManager("ftbench")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=distribution)
    manager.check_pending()  # a hook of a name that ftbench does not know
    callers = manager.get_hookcallers(module) or []
    if not callers:
        raise ValueError(f"module {entry.value} has no ftbench hook; is @ftbench.hookimpl missing?")
    brought = {
        field: _brought(getattr(manager.hook, f"{GROUP}_{field}"), check) for field, (_, check) in _KINDS.items()
    }
    hooks = tuple(caller.name for caller in callers)
    plugin = Plugin(distribution, _version(entry, distribution), hooks, requires=requires, **brought)
    names = ", ".join(each.name for those in brought.values() for each in those)
    say(f"{distribution} {plugin.version}: {', '.join(hooks)} -> {names} ({perf_counter() - start:.2f} s)")
    return plugin


def _compatible(entry: EntryPoint) -> str:
    """Return the versions of ftbench that a distribution asks for, empty where it takes any.

    Raises:
        FtbenchError: this is none of them.
    """
    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in (entry.dist.requires if entry.dist else None) or []]
    for need in wanted:
        if need.name.lower() == GROUP and (need.marker is None or need.marker.evaluate()):
            mine = version(GROUP)
            if not need.specifier.contains(mine, prereleases=True):
                raise FtbenchError(
                    f"it is made for ftbench{need.specifier}, and this is {mine}; install a version of either that fits"
                )
            return str(need.specifier)
    return ""


def _brought(hook: pluggy.HookCaller, check: Callable[[Any], None]) -> tuple[Any, ...]:
    """Return what a plugin's hook brings, each checked."""
    answers = hook()
    if not answers and hook.get_hookimpls():
        raise TypeError(f"{hook.name}() returned None; is its return statement missing?")
    found = [each for answer in answers for each in answer]
    for each in found:
        check(each)
    return tuple(found)


def _version(entry: EntryPoint, distribution: str) -> str:
    if entry.dist:
        return entry.dist.version
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, FtbenchError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
