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
                    "variants": list(algorithm.variants),
                }
            )
    if as_json:
        echo_json(rows)
        return
    echo_table(
        [[_name(row), row["needs"], _options(row["options"]), row["summary"]] for row in rows],
        ["algorithm", "needs", "options", "what it does"],
        widths=[None, None, 42, 60],
    )


def _name(row: dict[str, Any]) -> str:
    name: str = row["name"]
    return f"{name}:{', '.join(row['variants'])}, …" if row["variants"] else name


def _options(options: dict[str, Any]) -> str:
    """Write every option with its default, unless that says nothing or is a long text."""
    return " ".join(
        name if value in ({}, [], None) or len(str(value)) > 24 else f"{name}={value}"
        for name, value in options.items()
    )
