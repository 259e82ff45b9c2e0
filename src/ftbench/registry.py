"""What the installed plugins bring, and how it is found by name."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import click

from ftbench.algorithm import NO_ADAPTER, AdapterConfig, Algorithm, ThenConfig, configure
from ftbench.contract import ALL
from ftbench.data.sources import DataSource, read_source
from ftbench.data.task import HeldOut, Task, TaskData
from ftbench.errors import UsageError, nearest, returned
from ftbench.evaluation.judge import Judge
from ftbench.models.resolve import ModelSource
from ftbench.recipe import Recipe
from ftbench.results.report.section import ReportSection


@dataclass(frozen=True)
class Plugin:
    """An installed distribution that brings something, and what it brings."""

    name: str
    version: str
    hooks: tuple[str, ...]
    algorithms: tuple[type[Algorithm], ...] = ()
    tasks: tuple[type[Task], ...] = ()
    data: tuple[type[DataSource], ...] = ()
    models: tuple[type[ModelSource], ...] = ()
    judges: tuple[type[Judge], ...] = ()
    commands: tuple[click.Command, ...] = ()
    report_sections: tuple[type[ReportSection], ...] = ()
    requires: str = ""
    """The versions of ftbench that it says it works with; empty for any."""

    @property
    def modules(self) -> set[str]:
        """The modules, or packages, that what it brings is from."""
        kinds = (*self.algorithms, *self.tasks, *self.data, *self.models, *self.judges, *self.report_sections)
        called = (*kinds, *(command.callback for command in self.commands))
        return {str(each.__module__).partition(".")[0] for each in called if each is not None}


@dataclass(frozen=True)
class Registry:
    """All plugins that work, and a line for each that does not."""

    plugins: tuple[Plugin, ...]
    warnings: tuple[str, ...]

    @cached_property
    def algorithms(self) -> dict[str, type[Algorithm]]:
        """Every algorithm by name."""
        return {algorithm.name: algorithm for plugin in self.plugins for algorithm in plugin.algorithms}

    @cached_property
    def judges(self) -> dict[str, type[Judge]]:
        """Every kind of judge by name."""
        return {judge.name: judge for plugin in self.plugins for judge in plugin.judges}

    @cached_property
    def tasks(self) -> dict[str, type[Task]]:
        """Every task by name."""
        return {task.name: task for plugin in self.plugins for task in plugin.tasks}

    @cached_property
    def data(self) -> dict[str, type[DataSource]]:
        """All data that plugins bring, by name."""
        return {data.name: data for plugin in self.plugins for data in plugin.data}

    @cached_property
    def models(self) -> dict[str, type[ModelSource]]:
        """Every model that a plugin brings, by name."""
        return {model.name: model for plugin in self.plugins for model in plugin.models}

    def find_task(self, name: str) -> Task:
        """Return the task NAME.

        Raises:
            UsageError: there is none of that name; the nearest is named.
        """
        if name not in self.tasks:
            raise UsageError(f"no such task '{name}'; {nearest(name, self.tasks)}")
        return self.tasks[name]()

    def read_task(self, recipe: Recipe) -> TaskData:
        """Read a recipe's data and make its task of them.

        Raises:
            UsageError: no such task, data or topic.
            FtbenchError: the data cannot be read, or hold too little for the task.
        """
        source = read_source(recipe.data, recipe.lang, self.data)
        task = self.find_task(recipe.task)
        found = task.build(source, recipe.topic, HeldOut(recipe.evaluation_prompts, recipe.split))
        return returned(found, TaskData, type(task), "build")

    def instruct(self, algorithm: Algorithm, recipe: Recipe) -> Algorithm:
        """Tell an algorithm what the recipe's task asks of a model in words, and return it."""
        task = self.find_task(recipe.task)
        told = task.instruction(recipe.topic)
        algorithm.instruction = None if told is None else returned(told, str, type(task), "instruction")
        return algorithm

    @cached_property
    def commands(self) -> dict[str, tuple[click.Command, Plugin]]:
        """Every command that a plugin brings, by name, and the plugin."""
        return {str(command.name): (command, plugin) for plugin in self.plugins for command in plugin.commands}

    @property
    def report_sections(self) -> list[tuple[type[ReportSection], Plugin]]:
        """Every section of the report that a plugin brings, and the plugin."""
        return [(section, plugin) for plugin in self.plugins for section in plugin.report_sections]

    def find_judge(self, name: str) -> type[Judge]:
        """Return the judge NAME.

        Raises:
            UsageError: there is none of that name; the nearest is named.
        """
        if name not in self.judges:
            raise UsageError(f"no such judge '{name}'; {nearest(name, self.judges)}")
        return self.judges[name]

    @property
    def all_names(self) -> list[str]:
        """What `--algo all` runs: every algorithm, and of one with variants those that it names."""
        return [
            name
            for algorithm in self.algorithms.values()
            for name in ([f"{algorithm.name}:{variant}" for variant in algorithm.variants] or [algorithm.name])
        ]

    def find(self, name: str) -> type[Algorithm]:
        """Return the algorithm NAME, also of NAME:VARIANT.

        Raises:
            UsageError: there is none of that name; the nearest is named.
        """
        plain = name.partition(":")[0]
        if plain not in self.algorithms:
            raise UsageError(f"no such algorithm '{plain}'; {nearest(plain, [*self.algorithms, ALL])}")
        return self.algorithms[plain]

    def resolve(self, name: str) -> tuple[str, dict[str, Any]]:
        """Return the name that a run gets, and the options that NAME:VARIANT stands for.

        Raises:
            UsageError: no such algorithm or variant, or a variant is missing.
        """
        algorithm = self.find(name)
        _, colon, variant = name.partition(":")
        if not colon and algorithm.variants:
            raise UsageError(
                f"algorithm '{name}' is run as {name}:VARIANT, for example --algo {name}:{algorithm.variants[0]}"
            )
        if not colon:
            return name, {}
        short, options = algorithm.variant(variant)
        return f"{algorithm.name}:{short}", options

    def make(self, name: str, options: dict[str, Any]) -> Algorithm:
        """Make an algorithm with its options, and with the algorithms that its `adapter` or `then` names.

        Raises:
            UsageError: no such algorithm or option, or a value that does not fit.
        """
        algorithm = configure(self.find(name), options)
        for kind, option, give in (
            (AdapterConfig, "adapter", self._give_adapter),
            (ThenConfig, "then", self._give_then),
        ):
            if isinstance(algorithm.config, kind) and getattr(algorithm.config, option) != NO_ADAPTER:
                try:
                    give(algorithm)
                except UsageError as error:
                    raise UsageError(f"algorithm '{name}', option {option}: {error} (or '{NO_ADAPTER}')") from error
        return algorithm

    def _give_then(self, algorithm: Algorithm) -> None:
        """Make the algorithm that trains afterwards, and write all its options out there."""
        name, given = algorithm.config.then, algorithm.config.then_options
        name, options = self.resolve_given(name, given)
        other = self.make(name, options)
        if other.needs == "nothing" or other.own_trainer or isinstance(other.config, ThenConfig):
            raise UsageError(f"'{name}' cannot train another algorithm's model")
        algorithm.then = other
        algorithm.needs = other.needs  # type: ignore[misc]
        options = other.config.model_dump(mode="json")
        algorithm.config = algorithm.config.model_copy(update={"then": name, "then_options": options})

    def _give_adapter(self, algorithm: Algorithm) -> None:
        """Make the adapter that the configuration names, and write all its options out there."""
        name, given = algorithm.config.adapter, algorithm.config.adapter_options
        if "learning_rate" in given:
            raise UsageError(f"adapter_options.learning_rate: the rate is {algorithm.name}.learning_rate")
        name, options = self.resolve_given(name, given, aside={"learning_rate"})
        algorithm.adapter = self.make(name, options)
        if not algorithm.adapter.is_adapter:
            raise UsageError(f"'{name}' is more or less than what is trainable, and no other loss can train it")
        options = algorithm.adapter.config.model_dump(mode="json", exclude={"learning_rate"})
        algorithm.config = algorithm.config.model_copy(update={"adapter": name, "adapter_options": options})

    def resolve_given(
        self, name: str, given: dict[str, Any], aside: Collection[str] = ()
    ) -> tuple[str, dict[str, Any]]:
        """Return the name and options of an algorithm that options or a recipe name; as given if written out in full.

        Raises:
            UsageError: as `resolve` does.
        """
        if set(given) >= set(self.find(name).Config.model_fields) - set(aside):
            return name, given
        name, held = self.resolve(name)
        return name, merged(held, given)

    def plugin_of(self, name: str) -> Plugin:
        """Return the plugin that brings the algorithm `name`."""
        algorithm = self.find(name)
        return next(plugin for plugin in self.plugins if algorithm in plugin.algorithms)


def merged(held: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Let `given` win; of a table (settings={r = 8}) only what it names."""
    result = {**held, **given}
    for key, value in given.items():
        if isinstance(value, dict) and isinstance(held.get(key), dict):
            result[key] = {**held[key], **value}
    return result
