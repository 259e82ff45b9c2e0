"""`ftbench show RUN`."""

from pathlib import Path

import click

from ftbench.cli.common import echo_json, json_option, out_option


@click.command(name="show")
@click.argument("run")
@out_option
@click.option("--replies", default=5, show_default=True, type=click.IntRange(min=0), help="How many replies to show.")
@json_option
def command(run: str, out: Path, replies: int, as_json: bool) -> None:
    """Show RUN, a run's folder or the beginning of its name in --out: settings, figures, replies beside the base's."""
    from ftbench.results.show import describe_run, repeat_command
    from ftbench.results.store import find_run

    found = find_run(run, out)
    if as_json:
        items = found.replies()[:replies] if found.result.status == "ok" else []
        values = {**found.result.model_dump(mode="json"), "repeat": repeat_command(found)}
        echo_json({**values, "replies": [item.model_dump() for item in items]})
        return
    click.echo(describe_run(found, replies))
