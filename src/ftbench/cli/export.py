"""`ftbench export RUN`."""

from pathlib import Path

import click

from ftbench.cli.common import out_option, quieten_libraries, registry_with_warnings


@click.command(name="export")
@click.argument("run")
@click.option(
    "--to",
    required=True,
    metavar="FOLDER|FILE.gguf|gguf",
    help="What to write: a folder for transformers, a file for llama.cpp, or RUN.gguf here.",
)
@out_option
def command(run: str, to: str, out: Path) -> None:
    """Write the model of RUN, a run's folder or the beginning of its name in --out, for other programs.

    What is written is what was evaluated: adapters are merged into the weights, in the run's own precision, and the
    chat template writes prompts as in training. A card (README.md) has recipe, data, figures and licences.
    """
    from ftbench.export.folder import export_folder
    from ftbench.export.gguf import SUFFIX, export_gguf
    from ftbench.files import folder_bytes
    from ftbench.memory.budget import format_bytes
    from ftbench.results.store import find_run

    found = find_run(run, out, ok=True)
    name = found.folder.resolve().name
    registry = registry_with_warnings()
    quieten_libraries()
    path = Path(f"{name}{SUFFIX}" if to == SUFFIX.removeprefix(".") else to)
    if path.suffix == SUFFIX:
        size = export_gguf(found, registry, path)
        click.echo(f"{path}: {name} for llama.cpp, {format_bytes(size)}")
        return
    written = export_folder(found, registry, path)
    click.echo(f"{path}: {name} for transformers, {format_bytes(folder_bytes(path))}, {written.precision}")
    if written.needs:
        plugin = f"{found.result.plugin} {found.result.plugin_version}"
        click.echo(f"transformers reads it where {plugin} is installed and '{written.needs}' was imported")
