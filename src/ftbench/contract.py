"""Refuses what is not what its hook is for, in the words of the contract."""

import inspect
from typing import Any

import click

from ftbench.algorithm import Algorithm, AlgorithmConfig
from ftbench.data.sources import DataSource
from ftbench.data.task import Task
from ftbench.errors import nearest
from ftbench.evaluation.judge import Judge
from ftbench.models.resolve import ModelSource
from ftbench.results.report.section import ReportSection

ALL = "all"
_NEEDS = ("nothing", "demonstrations", "preferences")


def check_algorithm(algorithm: Any) -> None:
    """Refuse what is not an algorithm."""
    _check_class(algorithm, Algorithm)
    name = getattr(algorithm, "name", None)
    if not isinstance(name, str) or not name or name == ALL or any(c.isspace() or c in "./=:" for c in name):
        raise TypeError(
            f"{algorithm.__name__}.name is {name!r}: a name without blanks, dots, colons, slashes and '=' is needed"
        )
    if algorithm.needs not in _NEEDS:
        raise TypeError(f"{algorithm.__name__}.needs is {algorithm.needs!r}; {nearest(str(algorithm.needs), _NEEDS)}")
    if not (inspect.isclass(algorithm.Config) and issubclass(algorithm.Config, AlgorithmConfig)):
        raise TypeError(f"{algorithm.__name__}.Config is not a subclass of ftbench.AlgorithmConfig")


def check_judge(judge: Any) -> None:
    """Refuse what is not a judge."""
    _check_class(judge, Judge)
    missing = sorted(judge.__abstractmethods__)
    if "learnt" in vars(judge) and "from_learnt" not in vars(judge):
        missing.append("from_learnt")
    _check_whole(judge, missing, "name", "version")


def check_task(task: Any) -> None:
    """Refuse what is not a task."""
    _check_class(task, Task)
    _check_whole(task, sorted(task.__abstractmethods__), "name", "judge")


def check_data(data: Any) -> None:
    """Refuse what is not a source of data."""
    _check_class(data, DataSource)
    _check_whole(data, sorted(data.__abstractmethods__), "name")
    _check_text(data, "about")


def check_model(model: Any) -> None:
    """Refuse what is not a source of a model."""
    _check_class(model, ModelSource)
    _check_whole(model, sorted(model.__abstractmethods__), "name")
    _check_text(model, "about")


def check_command(command: Any) -> None:
    """Refuse what is not a command of click's."""
    if not isinstance(command, click.Command):
        raise TypeError(f"{command!r} is not a click.Command")
    if not command.name or not (command.help or command.short_help):
        raise TypeError(f"command '{command.name}' has no docstring, which `ftbench --help` shows")


def check_report_section(section: Any) -> None:
    """Refuse what is not a section of the report."""
    _check_class(section, ReportSection)
    _check_whole(section, sorted(section.__abstractmethods__), "name")
    _check_text(section, "title")


def _check_text(given: Any, field: str) -> None:
    if not isinstance(getattr(given, field, None), str):
        raise TypeError(f"{given.__name__} lacks {field}: a line of text")


def _check_class(given: Any, kind: type) -> None:
    if not (inspect.isclass(given) and issubclass(given, kind)):
        raise TypeError(f"{given!r} is not a subclass of ftbench.{kind.__name__}")


def _check_whole(given: Any, missing: list[str], *fields: str) -> None:
    if missing:
        raise TypeError(f"{given.__name__} lacks {', '.join(missing)}")
    for field in fields:
        value = getattr(given, field, None)
        if not isinstance(value, str) or not value or any(c.isspace() for c in value):
            raise TypeError(f"{given.__name__}.{field} is {value!r}: text without blanks is needed")
