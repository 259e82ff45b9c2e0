"""Where the rows come from: the recipe and the command of every run, and what it ran with."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftbench.results.report.lines import View
from ftbench.results.result import Environment
from ftbench.results.show import repeat_command
from ftbench.results.store import Run


@dataclass(frozen=True)
class Made:
    """How a run was made: its name, what became of it, the command that makes it again, and its recipe as TOML."""

    name: str
    status: str
    started: str
    plugin: str
    command: str
    recipe: str


@dataclass(frozen=True)
class Place:
    """A machine with its software, and the runs that were made there."""

    hardware: str
    versions: list[tuple[str, str]]
    runs: list[str]


def made(views: Sequence[View]) -> list[Made]:
    """Return every run of the page, in the order of the tables."""
    return [_made(run) for view in views for line in view.lines for run in line.runs]


def _made(run: Run) -> Made:
    result = run.result
    status = result.status if result.reason is None else f"{result.status}: {result.reason}"
    return Made(
        run.folder.name,
        status,
        clock(result.started),
        f"{result.plugin} {result.plugin_version}",
        repeat_command(run),
        result.recipe.to_toml().strip(),
    )


def places(views: Sequence[View]) -> list[Place]:
    """Return every machine with its versions, once, with the names of its runs."""
    found: dict[str, tuple[Environment, list[str]]] = {}
    for run in (run for view in views for line in view.lines for run in line.runs):
        environment = run.result.environment
        if environment:
            found.setdefault(environment.model_dump_json(), (environment, []))[1].append(run.folder.name)
    return [
        Place(f"{env.hardware}, {env.cores} cores, {env.precision}, {env.system}", list(env.versions.items()), runs)
        for env, runs in found.values()
    ]


def clock(started: str) -> str:
    """Write an ISO time down to the minute: 2026-11-23 16:05 UTC."""
    return started[:16].replace("T", " ") + (" UTC" if started.endswith("+00:00") else started[-6:])
