"""`ftbench chat RUN`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftbench.cli.common import out_option, quieten_libraries, registry_with_warnings, warn
from ftbench.recipe import BASELINE

if TYPE_CHECKING:
    from ftbench.registry import Registry
    from ftbench.results.store import Run
    from ftbench.serving.terminal import Talk


@click.command(name="chat")
@click.argument("run")
@out_option
@click.option("--against", metavar="RUN", help="Show the answer of another run, too: a run, or base.")
@click.option("--system", help="A system message, after the run's own.")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0, 2), help="0 is greedy.")
@click.option("--top-p", default=1.0, show_default=True, type=click.FloatRange(0, 1, min_open=True), help="Nucleus.")
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1), help="Of a reply.")
@click.option("--seed", type=int, help="For a temperature above 0: the same seed gives the same replies.")
def command(
    run: str,
    out: Path,
    against: str | None,
    system: str | None,
    temperature: float,
    top_p: float,
    max_tokens: int,
    seed: int | None,
) -> None:
    """Talk with RUN, a run's folder or the beginning of its name in --out. An empty line or Ctrl-D ends it.

    What is asked is what was measured: the same weights, precision, chat format and system prompt. Lines that are
    piped in are asked one after the other. /new forgets what was said.
    """
    from ftbench.results.store import find_run

    registry = registry_with_warnings()
    found = find_run(run, out, ok=True)
    others = [_other(against, found, out)] if against else []
    talks = _load([found, *others], registry)
    from ftbench.serving.sampling import Sampling
    from ftbench.serving.terminal import Wishes

    wishes = Wishes(Sampling(temperature, top_p, seed), max_tokens, system)
    asked = sys.stdin.isatty()
    if asked:
        click.echo("Ask something; an empty line ends it, /new forgets what was said.", err=True)
    while (text := _read(prompt=asked)) is not None:
        if text == "/new":
            for talk in talks:
                talk.turns.clear()
            continue
        for talk in talks:
            if len(talks) > 1:
                click.secho(f"{talk.name}:", bold=True)
            for piece in talk.ask(text, wishes):
                click.echo(piece, nl=False)
                sys.stdout.flush()
            click.echo("\n")


def _read(*, prompt: bool) -> str | None:
    """Return the next line; None at the end, or for an empty line that somebody typed."""
    try:
        if not prompt:
            while (line := sys.stdin.readline()) and not line.strip():
                pass
            return line.strip() or None
        return input("> ").strip() or None
    except EOFError:
        return None


def _other(name: str, run: "Run", out: Path) -> "Run":
    """Find the run to show beside; `base` is the one that RUN was measured against, where that is there."""
    from ftbench.errors import FtbenchError
    from ftbench.results.store import find_run, read_run

    measured = run.result.baseline
    if name == BASELINE and measured:
        try:
            return read_run(run.folder.parent / measured.run)
        except FtbenchError:
            pass  # moved away: the newest in --out does as well
    return find_run(name, out, ok=True)


def _load(runs: "list[Run]", registry: "Registry") -> "list[Talk]":
    from ftbench.execution.reloading import check_servable, reload_run
    from ftbench.serving.served import Served, name_runs
    from ftbench.serving.terminal import Talk

    for run in runs:
        check_servable(run, registry)
    quieten_libraries()
    talks = []
    for name, run in zip(name_runs(runs), runs, strict=True):
        reloaded = reload_run(run, registry)
        warn(f"{name}: {line}; replies may differ from those recorded" for line in reloaded.changed)
        talks.append(Talk(Served(name, run, reloaded.model, reloaded.chat, reloaded.packed)))
    return talks
