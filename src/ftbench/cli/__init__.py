"""The command line: a file per command, imported when it is asked for."""

import copy
import importlib
import os
import signal
import sys
from typing import Any

import click

from ftbench.errors import FtbenchError, UsageError, nearest
from ftbench.waiting import brief_waiting

_COMMANDS = {
    "run": "Run algorithms on a task and print the table.",
    "rerun": "Do a finished run again, and say what came out different.",
    "plan": "Predict what training takes in memory, without running it.",
    "table": "Print the table of finished runs.",
    "report": "Write one HTML file: table, charts, replies.",
    "show": "Show one run: settings, figures, some replies.",
    "chat": "Talk with a run's model in the terminal.",
    "serve": "Serve runs: OpenAI's API, and a chat page.",
    "export": "Write a run's model for other programs.",
    "new": "Write a plugin to begin with: one algorithm that runs.",
    "check": "Run the contract tests of an algorithm.",
    "algos": "List the algorithms, with what each needs.",
    "plugins": "List the installed plugins.",
    "recipes": "List the shipped recipes, or print one.",
    "models": "List the models that need no hub.",
    "data": "List data and topics, or show what a task is made of.",
}


class _Commands(click.Group):
    """Knows every command by name, and imports the one that is called; plugins are asked for all other names."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *_brought()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return _brought().get(cmd_name)
        module = importlib.import_module(f"ftbench.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            brought = _brought()
            if args[0] not in brought:
                raise UsageError(f"no such command '{args[0]}'; {nearest(args[0], [*_COMMANDS, *brought])}")
            return args[0], brought[args[0]], args[1:]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))
        if brought := _brought():
            with formatter.section("Commands of plugins"):
                formatter.write_dl([(name, command.get_short_help_str()) for name, command in brought.items()])


def _brought() -> dict[str, click.Command]:
    """Return the commands that plugins bring, by name; no shipped one can be replaced."""
    from ftbench.cli.common import registry_with_warnings, warn

    registry = registry_with_warnings()
    warn(
        f"plugin {plugin.name}: command '{name}' is left out: ftbench has that name"
        for name, (_, plugin) in registry.commands.items()
        if name in _COMMANDS
    )
    return {
        name: _shielded(command, f"plugin {plugin.name} {plugin.version}, command '{name}'")
        for name, (command, plugin) in registry.commands.items()
        if name not in _COMMANDS
    }


def _shielded(command: click.Command, where: str) -> click.Command:
    """Return a stranger's command, whose errors are said in one line as all others are."""
    shielded = copy.copy(command)

    def invoke(context: click.Context) -> Any:
        try:
            return type(command).invoke(shielded, context)
        except (FtbenchError, click.ClickException, click.exceptions.Exit, click.exceptions.Abort, BrokenPipeError):
            raise
        except Exception as error:  # a stranger's code may raise anything
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise FtbenchError(f"{where}: {text}; 'ftbench --debug' shows where") from error

    shielded.invoke = invoke  # type: ignore[method-assign, assignment]
    return shielded


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ftbench", prog_name="ftbench")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def ftbench(debug: bool) -> None:
    """Which fine-tuning algorithm, on my model, my data and the memory I have?

    \b
    ftbench run --algo lora     teach the default model one topic, offline, in minutes
    ftbench run --algo all      compare every algorithm on that task
    ftbench table               the figures of all finished runs
    ftbench report              the same as one HTML file, with charts and replies
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 0 (done), 1 (a run failed) or 2 (wrong usage)."""
    given = sys.argv[1:] if arguments is None else arguments
    os.environ.update(brief_waiting())  # before anything loads torch
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends as Ctrl-C does: nothing half-written
    sys.exit(_guarded(given))


def _guarded(arguments: list[str]) -> Any:
    debug = "--debug" in arguments
    try:
        return ftbench.main(arguments, prog_name="ftbench", standalone_mode=False) or 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except (FtbenchError, click.ClickException) as error:
        if debug:
            raise
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"ftbench: {' '.join(text.split())}", err=True)
        return 2 if isinstance(error, UsageError | click.UsageError) else 1
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("ftbench: stopped; finished runs are kept", err=True)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe (head, say) has seen enough
        return 0
    except Exception as error:  # a stranger's code may raise anything
        said = None if debug else _stranger_in(error)
        if said is None:
            raise
        click.echo(f"ftbench: {said}; 'ftbench --debug' shows more", err=True)
        return 1


def _stranger_in(error: Exception) -> str | None:
    """Say which plugin's data, task, model or algorithm raised an error; None where it was ftbench itself."""
    from ftbench.execution.blame import whose
    from ftbench.plugins import load_plugins

    return whose(error, load_plugins())
