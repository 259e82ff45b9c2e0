"""`ftbench plugins`."""

from typing import Any

import click

from ftbench.cli.common import echo_json, echo_table, json_option, registry_with_warnings


@click.command(name="plugins")
@json_option
def command(as_json: bool) -> None:
    """List the installed plugins, their hooks and what they bring."""
    registry = registry_with_warnings()
    rows: list[dict[str, Any]] = [
        {
            "name": plugin.name,
            "version": plugin.version,
            "requires": plugin.requires,
            "hooks": list(plugin.hooks),
            "algorithms": [algorithm.name for algorithm in plugin.algorithms],
            "tasks": [task.name for task in plugin.tasks],
            "data": [data.name for data in plugin.data],
            "models": [model.name for model in plugin.models],
            "judges": [judge.name for judge in plugin.judges],
            "commands": [command.name for command in plugin.commands],
            "report_sections": [section.name for section in plugin.report_sections],
        }
        for plugin in registry.plugins
    ]
    if as_json:
        echo_json(rows)
        return
    echo_table(
        [[row["name"], row["version"], row["requires"] or "any", " ".join(row["hooks"]), _brings(row)] for row in rows],
        ["plugin", "version", "for ftbench", "hooks", "brings"],
    )


def _brings(row: dict[str, Any]) -> str:
    """Name all that a plugin brings, in the order of its hooks."""
    return " ".join(name for hook in row["hooks"] for name in row[hook.removeprefix("ftbench_")])
