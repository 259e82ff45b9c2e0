"""Command lines as documentation shows them."""

import shlex
from typing import Any

import click

from ftbench.cli import ftbench


def parse(line: str) -> dict[str, Any]:
    """Return the parameters of a command line, read as the command would, which raises on unknown ones; run nothing."""
    _, name, *arguments = shlex.split(line)
    command = ftbench.get_command(click.Context(ftbench), name)
    assert command is not None
    return command.make_context(name, arguments).params
