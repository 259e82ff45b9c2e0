"""`ftbench report`."""

from pathlib import Path

import click

from ftbench.cli.common import out_option, read_finished


@click.command(name="report")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@out_option
@click.option(
    "--to",
    default="report.html",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write.",
)
@click.option("--sort", help="Column to sort by (by its JSON name), best first. Default: adherence.")
@click.option("--against", metavar="ROW", help="Test every row against this one: an algorithm, or a run's folder.")
@click.option("--price", type=click.FloatRange(min=0), help="Of an hour of the machine: adds what each run cost.")
def command(
    folders: tuple[Path, ...], out: Path, to: Path, sort: str | None, against: str | None, price: float | None
) -> None:
    """Write one HTML file of finished runs, those of FOLDERS or of --out: table, charts, replies.

    It opens from disk and fetches nothing. Rows that cannot be compared stand apart, as in 'ftbench table'.
    """
    from ftbench.files import write_text
    from ftbench.results.report.page import build_page, require_libraries
    from ftbench.results.rows import Asked

    require_libraries()
    runs = read_finished(folders or (out,))
    page = build_page(runs, Asked(sort, against, price))
    write_text(to, page)
    click.echo(f"{to}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(page.encode()) / 1e6:.1f} MB")
