"""Finds plugins by the entry-point group `ftbench`; one that fails to load is reported, never fatal.

What the core itself ships (`SHIPPED`) comes through the same hooks, as one plugin more.
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from types import ModuleType
from typing import Any

import pluggy

from ftbench import hookspecs
from ftbench.algorithm import NO_ADAPTER, AdapterConfig, Algorithm, AlgorithmConfig, ThenConfig, configure
from ftbench.errors import UsageError, nearest
from ftbench.evaluation.judge import Judge

GROUP = "ftbench"
SHIPPED = (EntryPoint("judges", "ftbench.evaluation.tfidf", GROUP),)
"""Not an entry point of the installation: an older one beside newer code would leave no judge."""
ALL = "all"
_NEEDS = ("nothing", "demonstrations", "preferences")


@dataclass(frozen=True)
class Plugin:
    """An installed distribution that brings something, and what it brings."""

    name: str
    version: str
    hooks: tuple[str, ...]
    algorithms: tuple[type[Algorithm], ...] = ()
    judges: tuple[type[Judge], ...] = ()


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


def load_plugins(entries: Sequence[EntryPoint] | None = None) -> Registry:
    """Load every plugin, each by itself, and what the core ships.

    Where two claim one name the first keeps it; the core's comes first, then distributions in the order of their
    names, those that begin with "ftbench-" first.

    Args:
        entries: the entry points to load; by default those installed.
    """
    found = entry_points(group=GROUP) if entries is None else entries
    unique = {(_distribution(entry), entry.name): entry for entry in found}
    order = sorted(unique.items(), key=lambda item: (not item[0][0].startswith("ftbench-"), item[0]))
    plugins: list[Plugin] = []
    warnings: list[str] = []
    taken: dict[tuple[str, str], str] = {}
    for entry in (*SHIPPED, *(entry for _, entry in order)):
        distribution = _distribution(entry)
        try:
            plugin = _load(entry, distribution)
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            warnings.append(f"plugin {distribution} is left out: {_one_line(error)}")
            continue
        kept: dict[str, list[Any]] = {"algorithm": [], "judge": []}
        brought: dict[str, tuple[Any, ...]] = {"algorithm": plugin.algorithms, "judge": plugin.judges}
        for what, each in [(what, each) for what, those in brought.items() for each in those]:
            first = taken.setdefault((what, each.name), distribution)
            if first == distribution and each.name not in [other.name for other in kept[what]]:
                kept[what].append(each)
            else:
                warnings.append(f"plugin {distribution}: {what} '{each.name}' is left out: {first} has that name")
        plugins.append(replace(plugin, algorithms=tuple(kept["algorithm"]), judges=tuple(kept["judge"])))
    return Registry(tuple(plugins), tuple(warnings))


def _distribution(entry: EntryPoint) -> str:
    return GROUP if entry in SHIPPED else entry.dist.name if entry.dist else entry.value


def _load(entry: EntryPoint, distribution: str) -> Plugin:
    module: ModuleType | Any = entry.load()
    manager = pluggy.PluginManager("ftbench")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=distribution)
    manager.check_pending()  # a hook of a name that ftbench does not know
    callers = manager.get_hookcallers(module) or []
    if not callers:
        raise ValueError(f"module {entry.value} has no ftbench hook; is @ftbench.hookimpl missing?")
    algorithms = _brought(manager.hook.ftbench_algorithms, _check)
    judges = _brought(manager.hook.ftbench_judges, _check_judge)
    hooks = tuple(caller.name for caller in callers)
    return Plugin(distribution, _version(entry, distribution), hooks, algorithms, judges)


def _brought(hook: pluggy.HookCaller, check: Callable[[Any], None]) -> tuple[Any, ...]:
    """Return what a plugin's hook brings, each checked."""
    answers = hook()
    if not answers and hook.get_hookimpls():
        raise TypeError(f"{hook.name}() returned None; is its return statement missing?")
    found = [each for answer in answers for each in answer]
    for each in found:
        check(each)
    return tuple(found)


def _version(entry: EntryPoint, distribution: str) -> str:
    if entry.dist:
        return entry.dist.version
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"


def _check_judge(judge: Any) -> None:
    """Refuse what is not a judge, in the words of the contract."""
    if not (inspect.isclass(judge) and issubclass(judge, Judge)):
        raise TypeError(f"{judge!r} is not a subclass of ftbench.Judge")
    missing = sorted(judge.__abstractmethods__)
    if "learnt" in vars(judge) and "from_learnt" not in vars(judge):
        missing.append("from_learnt")
    if missing:
        raise TypeError(f"{judge.__name__} lacks {', '.join(missing)}")
    for field in ("name", "version"):
        value = getattr(judge, field, None)
        if not isinstance(value, str) or not value or any(c.isspace() for c in value):
            raise TypeError(f"{judge.__name__}.{field} is {value!r}: text without blanks is needed")


def _check(algorithm: Any) -> None:
    """Refuse what is not an algorithm, in the words of the contract."""
    if not (inspect.isclass(algorithm) and issubclass(algorithm, Algorithm)):
        raise TypeError(f"{algorithm!r} is not a subclass of ftbench.Algorithm")
    name = getattr(algorithm, "name", None)
    if not isinstance(name, str) or not name or name == ALL or any(c.isspace() or c in "./=:" for c in name):
        raise TypeError(
            f"{algorithm.__name__}.name is {name!r}: a name without blanks, dots, colons, slashes and '=' is needed"
        )
    if algorithm.needs not in _NEEDS:
        raise TypeError(f"{algorithm.__name__}.needs is {algorithm.needs!r}; {nearest(str(algorithm.needs), _NEEDS)}")
    if not (inspect.isclass(algorithm.Config) and issubclass(algorithm.Config, AlgorithmConfig)):
        raise TypeError(f"{algorithm.__name__}.Config is not a subclass of ftbench.AlgorithmConfig")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
