"""What several commands share."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ftbench.plugins import Registry

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
