"""What runs share is made once, and never from what is damaged, old or of other code."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from ftbench.errors import Skip
from ftbench.execution import once as module
from ftbench.execution.once import DAYS, once
from ftbench.training.encoding import Encoded
from tiny import draw_pairs

NUMBERS = TypeAdapter(list[int])


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FTBENCH_CACHE", str(tmp_path))
    return tmp_path / "made"


class Maker:
    """Counts how often it makes."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> list[int]:
        self.times += 1
        return [self.times]


def test_the_second_reads_what_the_first_made(made: Path) -> None:
    maker = Maker()
    assert [once("numbers", {"of": 1}, NUMBERS, maker) for _ in range(3)] == [[1], [1], [1]]
    assert maker.times == 1
    assert len(list(made.iterdir())) == 1


def test_of_other_things_or_code_it_is_made_anew(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    once("numbers", {"of": 1}, NUMBERS, maker)
    assert once("numbers", {"of": 2}, NUMBERS, maker) == [2]
    assert once("figures", {"of": 1}, NUMBERS, maker) == [3]
    monkeypatch.setattr(module, "source_digest", lambda: "changed")
    assert once("numbers", {"of": 1}, NUMBERS, maker) == [4]


@pytest.mark.parametrize("content", [b"", b"[1, 2", b'{"a": 1}', b"\xff\x00"])
def test_a_damaged_file_is_made_anew(made: Path, content: bytes) -> None:
    maker = Maker()
    once("numbers", {}, NUMBERS, maker)
    (path,) = made.iterdir()
    path.write_bytes(content)
    assert once("numbers", {}, NUMBERS, maker) == [2]
    assert once("numbers", {}, NUMBERS, maker) == [2]


def test_a_cache_that_cannot_be_written_costs_time_alone(made: Path) -> None:
    made.write_text("not a folder")
    maker = Maker()
    assert [once("numbers", {}, NUMBERS, maker) for _ in range(2)] == [[1], [2]]


def test_what_could_not_be_made_is_not_kept(made: Path) -> None:
    def refuse() -> list[int]:
        raise Skip("no pairs")

    with pytest.raises(Skip, match="no pairs"):
        once("numbers", {}, NUMBERS, refuse)
    assert not list(made.iterdir())


def test_what_nobody_reads_any_more_is_removed(made: Path) -> None:
    for number in range(3):
        once("numbers", {"of": number}, NUMBERS, Maker())
    long_ago = time.time() - (DAYS + 1) * 86400
    paths = sorted(made.iterdir())
    for path in paths:
        os.utime(path, (long_ago, long_ago))
    maker = Maker()
    once("numbers", {"of": 0}, NUMBERS, maker)  # read, so that it is young again
    assert maker.times == 0
    once("numbers", {"of": 3}, NUMBERS, Maker())
    assert len(list(made.iterdir())) == 2


MAKES = """
import sys, time
from pathlib import Path
from pydantic import TypeAdapter
from ftbench.execution.once import once
def make():
    Path(sys.argv[1]).write_text("making")
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    return list(range(200_000))
print(sum(once("numbers", {}, TypeAdapter(list[int]), make)))
"""
SUM = str(sum(range(200_000)))


@pytest.fixture
def two(made: Path, tmp_path: Path) -> "Iterator[list[subprocess.Popen[str]]]":
    """Processes that need the same numbers: one is making them, until "go on" is there, and the other waits.

    Each leaves a sign where it makes them: "0" and "1".
    """
    workers: list[subprocess.Popen[str]] = []

    def start(go_on: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", MAKES, str(tmp_path / str(len(workers))), str(go_on)]
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return workers[-1]

    try:
        start(tmp_path / "go on")
        while not (tmp_path / "0").exists():
            time.sleep(0.01)
        said = start(tmp_path).stderr
        assert said is not None
        assert "another run is making the same numbers" in said.readline()
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_of_processes_side_by_side_one_makes_it_and_the_other_waits(
    two: "list[subprocess.Popen[str]]", made: Path, tmp_path: Path
) -> None:
    (tmp_path / "go on").touch()
    assert [worker.communicate()[0].strip() for worker in two] == [SUM, SUM]
    assert not (tmp_path / "1").exists()
    assert [path.suffix for path in made.iterdir()] == [".json"]


def test_where_the_maker_is_killed_the_one_that_waits_makes_it(
    two: "list[subprocess.Popen[str]]", made: Path, tmp_path: Path
) -> None:
    assert not (tmp_path / "1").exists()
    two[0].kill()
    two[0].wait()
    assert two[1].communicate()[0].strip() == SUM
    assert (tmp_path / "1").exists()
    assert [path.suffix for path in made.iterdir()] == [".json"]


def test_where_there_are_no_locks_nobody_waits(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    maker, inner = Maker(), Maker()

    def make() -> list[int]:
        once("numbers", {}, NUMBERS, inner)  # as another process would meanwhile
        return maker()

    assert once("numbers", {}, NUMBERS, make) == [1]
    assert (maker.times, inner.times) == (1, 1)
    assert once("numbers", {}, NUMBERS, maker) == [1]


def test_tokens_come_back_as_they_were(made: Path) -> None:
    encoded = Encoded(draw_pairs(0), 3, {"prompt too long": 2})
    adapter = TypeAdapter(Encoded)
    assert once("tokens", {}, adapter, lambda: encoded) is encoded
    assert once("tokens", {}, adapter, lambda: pytest.fail("made twice")) == encoded
