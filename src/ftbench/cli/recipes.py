"""`ftbench recipes`."""

import click

from ftbench.cli.common import echo_table


@click.command(name="recipes")
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the shipped recipes, or print the recipe NAME (or a file's) in full as TOML."""
    from ftbench.recipe import read_recipe, shipped_recipes

    if name:
        click.echo(read_recipe(name).to_toml(), nl=False)
        return
    rows = []
    for each in sorted(shipped_recipes()):
        recipe = read_recipe(each)
        rows.append([each, recipe.model, recipe.data, recipe.topic, f"{recipe.tokens:,}"])
    echo_table(rows, ["recipe", "model", "data", "topic", "tokens"])
