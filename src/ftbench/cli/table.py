"""`ftbench table`."""

from pathlib import Path

import click

from ftbench.cli.common import out_option, read_finished


@click.command(name="table")
@click.argument("folders", nargs=-1)
@out_option
@click.option(
    "--format",
    "style",
    default="github",
    show_default=True,
    type=click.Choice(["github", "html", "latex", "csv", "json"]),
    help="How to print it.",
)
@click.option("--sort", help="Column to sort by (by its JSON name), best first. Default: adherence.")
@click.option("--against", metavar="ROW", help="Test every row against this one: an algorithm, or a run's folder.")
@click.option("--price", type=click.FloatRange(min=0), help="Of an hour of the machine: adds what each run cost.")
@click.option("--wide", is_flag=True, help="Print all columns.")
def command(
    folders: tuple[Path, ...],
    out: Path,
    style: str,
    sort: str | None,
    against: str | None,
    price: float | None,
    wide: bool,
) -> None:
    """Print the table of finished runs, those of FOLDERS or of --out.

    Rows that cannot be compared (other model, data, task, training, evaluation, judge or hardware) stand in tables
    of their own, with what sets them apart; memory budgets are a column. The seeds of a recipe are one row.
    """
    from ftbench.results.rows import Asked, build_groups
    from ftbench.results.store import without_collecting
    from ftbench.results.table import render

    with without_collecting():
        runs = read_finished(folders or (out,))
        click.echo(render(build_groups(runs, Asked(sort, against, price)), style, wide=wide))
