"""`ftbench report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftbench.cli.common import out_option, read_finished, registry_with_warnings, warn

if TYPE_CHECKING:
    from ftbench.results.report.section import Brought
    from ftbench.results.store import Run


@click.command(name="report")
@click.argument("folders", nargs=-1)
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
    page = build_page(runs, Asked(sort, against, price), _brought(runs))
    write_text(to, page)
    click.echo(f"{to}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(page.encode()) / 1e6:.1f} MB")


def _brought(runs: "Sequence[Run]") -> "list[Brought]":
    """Return what plugins show of the runs; one that fails costs its section and a warning."""
    from ftbench.results.report.section import Brought, ReportTable

    found = []
    for section, plugin in registry_with_warnings().report_sections:
        where = f"plugin {plugin.name} {plugin.version}, {section.__qualname__}.build"
        try:
            table = section().build(runs)
            if isinstance(table, ReportTable):
                found.append(Brought.of(section, table))
        except Exception as error:  # a stranger's code may raise anything
            warn([f"{where}: {type(error).__name__}: {' '.join(str(error).split())}"])
            continue
        if not isinstance(table, ReportTable | None):
            warn([f"{where} returned {type(table).__name__}: a ftbench.ReportTable or None is needed"])
    return found
