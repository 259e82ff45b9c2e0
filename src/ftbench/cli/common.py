"""What several commands share."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ftbench.registry import Registry
    from ftbench.results.store import Run

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def out_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --out, a folder or a URL; the command is handed a folder of runs, of a URL its mirror.

    The same holds for the FOLDERS of a command that has some; --out is not looked at where they are given.
    """

    @wraps(command)
    def opened(*, out: str, **given: Any) -> Any:
        if given.get("folders"):
            given["folders"] = tuple(map(_open, given["folders"]))
        return command(out=Path(out) if given.get("folders") else _open(out), **given)

    said = "Folder of the runs, or a URL that fsspec reads: s3://BUCKET/FOLDER."
    return click.option("--out", default="runs", show_default=True, metavar="FOLDER|URL", help=said)(opened)


def _open(place: str) -> Path:
    from ftbench.results.address import is_url

    if not is_url(place):
        return Path(place)
    from ftbench.results.mirror import open_store

    return open_store(place)


def registry_with_warnings() -> "Registry":
    """Load the plugins, and say in a line each which of them do not work."""
    from ftbench.plugins import load_plugins
    from ftbench.tracing import traced

    registry = traced(load_plugins())
    warn(registry.warnings)
    return registry


def read_finished(folders: Sequence[Path]) -> "list[Run]":
    """Read all runs below the folders, oldest first, and say in a line each which cannot be read.

    Raises:
        UsageError: there is no such folder, or no run in any.
    """
    from ftbench.errors import UsageError
    from ftbench.results.address import name_of
    from ftbench.results.store import oldest_first, read_runs

    runs = []
    for folder in folders:
        found, warnings = read_runs(folder)
        warn(warnings)
        runs.extend(found)
    if not runs:
        raise UsageError(f"no finished runs in {', '.join(map(name_of, folders))}; make one with 'ftbench run'")
    return oldest_first(runs) if len(folders) > 1 else runs


def warn(lines: Iterable[str]) -> None:
    """Print warnings where they do not disturb a script."""
    for line in lines:
        click.echo(f"warning: {line}", err=True)


def echo_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def echo_table(rows: list[list[str]], headings: list[str], widths: list[int | None] | None = None) -> None:
    """Print a plain table for a person; `widths` wraps columns at so many characters."""
    from tabulate import tabulate

    click.echo(tabulate(rows, headings, tablefmt="simple", disable_numparse=True, maxcolwidths=widths))


def quieten_libraries() -> None:
    """Keep what libraries say while a model is loaded off the terminal."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
