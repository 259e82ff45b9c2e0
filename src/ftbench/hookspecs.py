"""The hooks that a plugin may implement: functions with `@ftbench.hookimpl`, in the module that its entry point names.

A plugin implements those that it has something for; what each returns is a list. Two things of one kind and name do not
stand side by side: the first keeps it.
"""

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from ftbench.algorithm import Algorithm
    from ftbench.data.sources import DataSource
    from ftbench.data.task import Task
    from ftbench.evaluation.judge import Judge
    from ftbench.models.resolve import ModelSource
    from ftbench.results.report.section import ReportSection

hookspec = pluggy.HookspecMarker("ftbench")
hookimpl = pluggy.HookimplMarker("ftbench")


@hookspec
def ftbench_algorithms() -> "list[type[Algorithm]]":
    """Return the algorithms that this plugin brings: subclasses of `ftbench.Algorithm`, for `run --algo NAME`."""
    raise NotImplementedError  # a specification: pluggy never calls it


@hookspec
def ftbench_tasks() -> "list[type[Task]]":
    """Return the tasks that this plugin brings: subclasses of `ftbench.Task`, for `--task NAME`."""
    raise NotImplementedError


@hookspec
def ftbench_data() -> "list[type[DataSource]]":
    """Return the data that this plugin brings: subclasses of `ftbench.DataSource`, for `--data NAME`."""
    raise NotImplementedError


@hookspec
def ftbench_models() -> "list[type[ModelSource]]":
    """Return the models that this plugin brings: subclasses of `ftbench.ModelSource`, for `--model NAME`."""
    raise NotImplementedError


@hookspec
def ftbench_judges() -> "list[type[Judge]]":
    """Return the kinds of judge that this plugin brings: subclasses of `ftbench.Judge`, for `--set judge=NAME`."""
    raise NotImplementedError


@hookspec
def ftbench_commands() -> "list[click.Command]":
    """Return the commands that this plugin adds to `ftbench`, each with a docstring; no shipped one can be replaced."""
    raise NotImplementedError


@hookspec
def ftbench_report_sections() -> "list[type[ReportSection]]":
    """Return the sections that this plugin adds to `ftbench report`: subclasses of `ftbench.ReportSection`."""
    raise NotImplementedError
