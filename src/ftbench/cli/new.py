"""`ftbench new`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftbench.cli.common import registry_with_warnings

if TYPE_CHECKING:
    from ftbench.scaffold.write import Changes


@click.command(name="new")
@click.argument("name")
@click.option(
    "--changes",
    type=click.Choice(["loss", "model", "trainer"]),
    default="loss",
    show_default=True,
    help="What the algorithm does in a way of its own.",
)
@click.option(
    "--out", default=".", show_default=True, type=click.Path(path_type=Path), help="Folder to write the plugin's into."
)
def command(name: str, changes: "Changes", out: Path) -> None:
    """Write a plugin to begin with, ftbench-NAME: it installs, passes its tests and runs as it is.

    Its one module holds a working algorithm, with comments that say what may be changed and how.
    """
    from ftbench.scaffold.write import check_name, write_plugin

    names = check_name(name, registry_with_warnings())
    folder = write_plugin(names, changes, out)
    click.echo(f"{folder} is written. Now:\n")
    click.echo(f'  pip install -e "{folder}[test]"')
    click.echo(f"  ftbench check {names.algorithm}          the contract tests")
    click.echo(f"  ftbench run --algo {names.algorithm}     its row beside the untouched model's")
    click.echo(f"\nThe algorithm is in {folder / 'src' / names.module / '__init__.py'}.")
