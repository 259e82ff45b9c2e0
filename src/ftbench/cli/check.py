"""`ftbench check`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from ftbench.cli.common import echo_json, json_option, registry_with_warnings

if TYPE_CHECKING:
    from ftbench.checking.checks import Outcome
    from ftbench.registry import Registry


@click.command(name="check")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="lora.rank=32: an option to check with.")
@click.option("--model", help="A folder or hub id to check on, in place of a tiny random Llama.")
@json_option
def command(names: tuple[str, ...], settings: tuple[str, ...], model: str | None, as_json: bool) -> int:
    """Run the contract tests of algorithms on a tiny random model: NAME, NAME:VARIANT, or 'all'.

    An algorithm that passes refuses unknown options, trains and lowers its loss, changes only what it says is
    trainable, is the same when it is reloaded, repeats by its seed, goes on where it was killed, accumulates gradients,
    stays within its predicted memory, and leaves the process as it was. Exits with 1 where one does not.
    """
    from ftbench.cli.asking import options_of
    from ftbench.memory.heap import MODELS, import_for_good

    registry = registry_with_warnings()
    wanted = [each for name in names for each in (registry.all_names if name == "all" else [name])]
    options = options_of(wanted, settings)
    import_for_good(*MODELS)
    rows: list[dict[str, Any]] = []
    for name in wanted:
        if not as_json:
            click.echo(name)
        for outcome in _outcomes(registry, name, options[name], model):
            rows.append(_row(name, outcome))
            if not as_json:
                _print(outcome)
    if as_json:
        echo_json(rows)
    failed = [row for row in rows if row["verdict"] == "failed"]
    if not as_json:
        click.echo(f"\n{len(failed)} of {len(rows)} checks failed" if failed else "\nno check failed")
    return 1 if failed else 0


def _outcomes(registry: "Registry", name: str, options: dict[str, Any], model: str | None) -> "list[Outcome]":
    from ftbench.checking.checks import run_checks
    from ftbench.checking.subject import Subject

    with TemporaryDirectory() as folder:
        return list(run_checks(Subject(registry, name, options, Path(folder), model)))


def _row(name: str, outcome: "Outcome") -> dict[str, Any]:
    return {
        "algorithm": name,
        "check": outcome.check.name,
        "promise": outcome.check.promise,
        "verdict": outcome.verdict,
        "text": outcome.text,
        "read": outcome.check.read,
        "seconds": round(outcome.seconds, 2),
    }


def _print(outcome: "Outcome") -> None:
    check = outcome.check
    click.echo(f"  {outcome.verdict:7}  {check.name:12}  {check.promise} ({outcome.seconds:.1f} s)")
    if outcome.text:
        click.echo(f"           {outcome.text}")
    if outcome.verdict == "failed":
        click.echo(f"           read: python -m pydoc {check.read}")
