"""Pytest within a test, in the same process: unlike pytester, it leaves loaded modules alone, which numpy needs."""

from pathlib import Path

import pytest


class Reports:
    """What became of each test, by its outcome."""

    def __init__(self) -> None:
        self.code: int = -1
        self.all: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.all.append(report)

    def of(self, outcome: str) -> list[str]:
        return [report.nodeid for report in self.all if report.outcome == outcome]


def run_pytest(*arguments: str | Path, settings: Path, monkeypatch: pytest.MonkeyPatch) -> Reports:
    """Run pytest with no plugin but ours, which is loaded once whether ftbench is installed or not.

    Args:
        arguments: as on the command line.
        settings: a configuration file; an empty one leaves pytest's defaults.
        monkeypatch: to switch plugins off with.
    """
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    settings.touch()
    reports = Reports()
    ours = ["-p", "no:cacheprovider", "-p", "ftbench.checking.pytest_plugin", "-c", str(settings)]
    reports.code = int(pytest.main([*ours, *map(str, arguments)], plugins=[reports]))
    return reports
