"""`ftbench plugins`."""

import click

from ftbench.cli.common import echo_json, echo_table, json_option, registry_with_warnings


@click.command(name="plugins")
@json_option
def command(as_json: bool) -> None:
    """List the installed plugins, their hooks and what they bring."""
    registry = registry_with_warnings()
    rows = [
        {
            "name": plugin.name,
            "version": plugin.version,
            "hooks": list(plugin.hooks),
            "algorithms": [algorithm.name for algorithm in plugin.algorithms],
            "judges": [judge.name for judge in plugin.judges],
        }
        for plugin in registry.plugins
    ]
    if as_json:
        echo_json(rows)
        return
    echo_table(
        [
            [str(row["name"]), str(row["version"]), *(" ".join(row[key]) for key in ("hooks", "algorithms", "judges"))]
            for row in rows
        ],
        ["plugin", "version", "hooks", "algorithms", "judges"],
    )
