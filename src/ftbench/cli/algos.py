"""`ftbench algos`."""

from typing import Any

import click

from ftbench.cli.common import echo_json, echo_table, json_option, registry_with_warnings


@click.command(name="algos")
@json_option
def command(as_json: bool) -> None:
    """List the algorithms, what each needs, and its options."""
    from ftbench.algorithm import summary

    registry = registry_with_warnings()
    rows: list[dict[str, Any]] = []
    for plugin in registry.plugins:
        for algorithm in plugin.algorithms:
            fields = algorithm.Config.model_fields.items()
            options = {name: field.get_default(call_default_factory=True) for name, field in fields}
            if algorithm.needs == "nothing":
                options.pop("learning_rate", None)
            rows.append(
                {
                    "name": algorithm.name,
                    "summary": summary(algorithm),
                    "needs": algorithm.needs,
                    "plugin": plugin.name,
                    "version": plugin.version,
                    "options": options,
                }
            )
    if as_json:
        echo_json(rows)
        return
    echo_table(
        [[row["name"], row["needs"], _options(row["options"]), row["summary"]] for row in rows],
        ["algorithm", "needs", "options", "what it does"],
    )


def _options(options: dict[str, Any]) -> str:
    return " ".join(name if isinstance(value, str) else f"{name}={value}" for name, value in options.items())
