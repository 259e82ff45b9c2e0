"""`ftbench models`."""

import click

from ftbench.cli.common import echo_table


@click.command(name="models")
def command() -> None:
    """List the models that need no hub; any hub id or local folder is taken as well."""
    from ftbench.models.resolve import SHIPPED

    echo_table([[name, text] for name, text in SHIPPED.items()], ["model", "what it is"])
    click.echo(
        "\nAlso: --model OWNER/NAME (from the Hugging Face hub) or --model FOLDER (config.json and safetensors)."
    )
