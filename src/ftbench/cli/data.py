"""`ftbench data`."""

import click

from ftbench.cli.common import echo_table


@click.command(name="data")
@click.argument("data", required=False)
@click.option("--topic", default="trains", show_default=True, help="The topic to look at.")
@click.option("--lang", default="en", show_default=True, help="Language of the messages.")
@click.option(
    "--examples", default=3, show_default=True, type=click.IntRange(min=0), help="How many examples to print."
)
def command(data: str | None, topic: str, lang: str, examples: int) -> None:
    """List data and topics, or show the task that DATA gives: counts, what was left out, some examples."""
    from ftbench.data.sources import SHIPPED
    from ftbench.data.topics import shipped_topics

    if data is None:
        echo_table([[name, text] for name, text in SHIPPED.items()], ["data", "what it is"])
        click.echo(
            "\nAlso: --data FILE.jsonl[.gz] with OASST1's messages or trees, or with prompt, chosen, rejected.\n"
        )
        echo_table([[topic.name, str(len(topic.words))] for topic in shipped_topics().values()], ["topic", "words"])
        click.echo("\nAlso: --topic FILE with a topic word a line.")
        return
    from ftbench.data.task import build_task
    from ftbench.recipe import Recipe

    task = build_task(data, topic, lang, Recipe().evaluation_prompts)
    counts = {
        "training examples": len(task.train),
        "evaluation prompts": len(task.evaluation),
        "on-topic replies (training)": len(task.on_topic),
        "on-topic replies (held out)": len(task.held_out_on_topic),
        **{f"messages left out: {reason}": count for reason, count in task.left_out.items()},
    }
    echo_table([[name, f"{count:,}"] for name, count in counts.items()], [f"{task.origin}, {task.topic}", "count"])
    for example in task.train[:examples]:
        click.echo(f"\nprompt    {example.prompt}\nchosen    {example.chosen}\nrejected  {example.rejected}")
