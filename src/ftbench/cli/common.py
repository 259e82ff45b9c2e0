"""What several commands share."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ftbench.registry import Registry
    from ftbench.results.store import Run

out_option = click.option(
    "--out", default="runs", show_default=True, type=click.Path(path_type=Path), help="Folder of the runs."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def registry_with_warnings() -> "Registry":
    """Load the plugins, and say in a line each which of them do not work."""
    from ftbench.plugins import load_plugins

    registry = load_plugins()
    warn(registry.warnings)
    return registry


def read_finished(folders: Sequence[Path]) -> "list[Run]":
    """Read all runs below the folders, oldest first, and say in a line each which cannot be read.

    Raises:
        UsageError: there is no such folder, or no run in any.
    """
    from ftbench.errors import UsageError
    from ftbench.results.store import read_runs

    runs = []
    for folder in folders:
        found, warnings = read_runs(folder)
        warn(warnings)
        runs.extend(found)
    if not runs:
        raise UsageError(f"no finished runs in {', '.join(map(str, folders))}; make one with 'ftbench run'")
    return sorted(runs, key=lambda run: run.result.started)


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
