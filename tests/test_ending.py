"""What is said of a run whose worker left no result."""

import signal
from pathlib import Path

import pytest

from ftbench.execution.ending import Ending, explain
from ftbench.recipe import Recipe

CPP = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"


@pytest.mark.parametrize(
    ("code", "log", "status", "reason"),
    [
        (-signal.SIGABRT, CPP, "out-of-memory", "the process crashed (SIGABRT): terminate called"),
        (-signal.SIGABRT, CPP + 9 * "something else\n", "failed", "the process crashed (SIGABRT); see log.txt"),
        (-signal.SIGSEGV, "", "failed", "the process crashed (SIGSEGV); see log.txt"),
        (1, "Traceback\nRuntimeError: can't start new thread", "out-of-memory", "the process ended: RuntimeError"),
        (1, "one\ntwo", "failed", "the process ended with code 1: two"),
        (1, "", "failed", "no output"),
    ],
)
def test_an_end_by_memory_is_told_from_others(code: int, log: str, status: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(log)
    found = explain(Ending(code, "train", timed_out=False), tmp_path, Recipe())
    assert found[0] == status
    assert reason in found[1]
    assert "\n" not in found[1]
