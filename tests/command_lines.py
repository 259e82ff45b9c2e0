"""Command lines as documentation shows them."""

import shlex

import click

from ftbench.cli import ftbench


def parse(line: str) -> None:
    """Read a command line as the command would, which raises on an unknown option and runs nothing."""
    _, name, *arguments = shlex.split(line)
    command = ftbench.get_command(click.Context(ftbench), name)
    assert command is not None
    command.make_context(name, arguments)
