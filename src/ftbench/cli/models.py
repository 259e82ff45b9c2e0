"""`ftbench models`."""

import click

from ftbench.cli.common import echo_table, registry_with_warnings


@click.command(name="models")
def command() -> None:
    """List the models that need no hub; any hub id or local folder is taken as well."""
    from ftbench.models.resolve import SHIPPED

    brought = [[name, model.about] for name, model in registry_with_warnings().models.items()]
    echo_table([*([name, text] for name, text in SHIPPED.items()), *brought], ["model", "what it is"])
    click.echo(
        "\nAlso: --model OWNER/NAME (from the Hugging Face hub) or --model FOLDER (config.json and safetensors)."
    )
