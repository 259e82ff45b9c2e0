"""Pytest's side: `pytest --ftbench-algo NAME` adds the contract tests of an algorithm to what else is collected."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ftbench.checking.checks import Check
    from ftbench.checking.subject import Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("ftbench", "contract tests of ftbench's algorithms")
    group.addoption(
        "--ftbench-algo",
        action="append",
        default=[],
        metavar="NAME",
        help="check this algorithm; repeat it, or say all",
    )
    group.addoption(
        "--ftbench-set", action="append", default=[], metavar="NAME=VALUE", help="an option to check with: lora.rank=32"
    )


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the checks of every algorithm that is asked for, behind the tests that files hold.

    Raises:
        UsageError: there is no such algorithm or option.
    """
    asked: list[str] = config.getoption("--ftbench-algo")
    if not asked:
        return
    from ftbench.cli.asking import options_of
    from ftbench.errors import UsageError
    from ftbench.plugins import load_plugins

    registry = load_plugins()
    try:
        names = [each for name in asked for each in (registry.all_names if name == "all" else [name])]
        options = options_of(names, config.getoption("--ftbench-set"))
        for name in names:
            own, held = registry.resolve(name)
            registry.make(own, {**held, **options[name]})
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    for name in names:
        checked = CheckedAlgorithm.from_parent(session, name=f"ftbench:{name}", nodeid=f"ftbench:{name}")
        checked.algorithm, checked.options, checked.registry = name, options[name], registry
        items.extend(checked.collect())


class CheckedAlgorithm(pytest.Collector):
    """An algorithm, whose runs its checks share."""

    algorithm: str
    options: dict[str, Any]
    registry: Any
    _subject: "Subject | None" = None

    def collect(self) -> "Iterator[CheckItem]":
        """Return its checks."""
        from ftbench.checking.checks import CHECKS

        for check in CHECKS:
            item = CheckItem.from_parent(self, name=check.name)
            item.check = check
            yield item

    def subject(self) -> "Subject":
        """Return what is checked, made when the first check asks for it and gone with the session."""
        from ftbench.checking.subject import Subject

        if self._subject is None:
            folder = TemporaryDirectory()
            self.config.add_cleanup(folder.cleanup)
            self._subject = Subject(self.registry, self.algorithm, self.options, Path(folder.name))
        return self._subject


class CheckItem(pytest.Item):
    """One check of one algorithm."""

    parent: CheckedAlgorithm
    check: "Check"

    def runtest(self) -> None:
        """Look; what does not apply is skipped with its reason."""
        from ftbench.checking.checks import NotApplicable

        try:
            self.check.look(self.parent.subject())
        except NotApplicable as reason:
            pytest.skip(str(reason))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Say what is wrong and where to read about it; of anything else that is raised, where."""
        from ftbench.checking.checks import BrokenError

        if isinstance(excinfo.value, BrokenError):
            return f"{excinfo.value}\nread: python -m pydoc {self.check.read}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """Name it as reports do."""
        return "ftbench", None, f"{self.parent.name}: {self.check.promise}"
