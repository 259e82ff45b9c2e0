"""`ftbench data`."""

import click

from ftbench.cli.common import echo_table, registry_with_warnings


@click.command(name="data")
@click.argument("data", required=False)
@click.option("--task", default="topic", show_default=True, help="The task to look at.")
@click.option("--topic", default="trains", show_default=True, help="Its topic.")
@click.option("--lang", default="en", show_default=True, help="Language of the messages.")
@click.option(
    "--examples", default=3, show_default=True, type=click.IntRange(min=0), help="How many examples to print."
)
def command(data: str | None, task: str, topic: str, lang: str, examples: int) -> None:
    """List data, tasks and topics, or show the task that DATA gives: counts, what was left out, some examples."""
    from ftbench.algorithm import summary
    from ftbench.data.sources import SHIPPED
    from ftbench.data.topics import shipped_topics

    registry = registry_with_warnings()
    if data is None:
        brought = [[name, source.about] for name, source in registry.data.items()]
        echo_table([*([name, text] for name, text in SHIPPED.items()), *brought], ["data", "what it is"])
        click.echo(
            "\nAlso: --data FILE.jsonl[.gz] with OASST1's messages or trees, or with prompt, chosen, rejected.\n"
        )
        echo_table([[name, summary(kind)] for name, kind in registry.tasks.items()], ["task", "what is taught"])
        click.echo()
        echo_table([[topic.name, str(len(topic.words))] for topic in shipped_topics().values()], ["topic", "words"])
        click.echo("\nAlso: --topic FILE with a topic word a line.")
        return
    from ftbench.recipe import build_recipe

    values = {"data": data, "task": task, "topic": topic, "lang": lang}
    found = registry.read_task(build_recipe(values, where="ftbench data"))
    counts = {
        "training examples": len(found.train),
        "evaluation prompts": len(found.evaluation),
        "replies as taught (training)": len(found.on_topic),
        "replies as taught (held out)": len(found.held_out_on_topic),
        **{f"messages left out: {reason}": count for reason, count in found.left_out.items()},
    }
    echo_table([[name, f"{count:,}"] for name, count in counts.items()], [f"{found.origin}, {found.topic}", "count"])
    for example in found.train[:examples]:
        click.echo(f"\nprompt    {example.prompt}\nchosen    {example.chosen}\nrejected  {example.rejected}")
