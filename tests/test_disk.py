"""A disk that is full: one line that helps, no result lost, and what was trained is kept."""

import errno
import math
import shutil
from pathlib import Path

import pytest

from ftbench.errors import FtbenchError
from ftbench.execution.unfinished import is_of_use, state_file, would_fail_again
from ftbench.recipe import Recipe
from ftbench.results.store import ATTACKS, LOG, METRICS, MODEL, RECIPE, REPLIES, RESULT
from made_results import make_run, store
from small_disk import fill
from working_here import WorkingHere, call, run

PAGE = 4096


def pages(path: Path) -> int:
    files = [file for file in [path, *path.rglob("*")] if file.is_file()]
    return sum(math.ceil(file.stat().st_size / PAGE) for file in files)


def hidden(out: Path) -> list[str]:
    return [path.name for path in out.glob(".*")]


def test_wherever_the_disk_runs_full_the_error_says_what_to_do_and_earlier_runs_are_whole(
    recipe: Recipe, small_disk: Path, tmp_path: Path
) -> None:
    whole = run(recipe, tmp_path / "whole").folder
    out = small_disk / "runs"
    earlier = store(make_run("lora"), out)
    before = {path: path.read_bytes() for path in earlier.iterdir()}
    ends: dict[str, str] = {}
    room = 0
    for name in (RECIPE, LOG, METRICS, MODEL, REPLIES, ATTACKS, RESULT):
        needed = pages(whole / name)
        fill(small_disk, (room + needed - 1) * PAGE)  # all that is written before it, and not quite itself
        room += needed
        try:
            made = run(recipe, out)
        except FtbenchError as error:
            ends[name] = "one line"
            text = str(error)
        else:
            ends[name] = f"{made.result.status} in {made.result.phase}"
            text = made.result.reason or ""
            assert not (made.folder / MODEL).exists()
            shutil.rmtree(made.folder)
        assert "No space left on device" in text
        assert "free some space" in text
        assert "\n" not in text
        assert {path: path.read_bytes() for path in earlier.iterdir()} == before
        assert not hidden(out)
    assert ends[RECIPE] == "one line"
    assert ends[MODEL] == "failed in save"
    assert ends[REPLIES] == ends[ATTACKS] == "failed in evaluate"
    assert ends[RESULT] == "failed in result"
    fill(small_disk, room * PAGE)
    assert run(recipe, out).result.status == "ok"


def test_of_a_run_whose_result_has_no_room_the_figures_are_kept_and_the_model_goes(
    recipe: Recipe, small_disk: Path
) -> None:
    def leave_nothing(phase: str, folder: Path) -> None:
        if phase == "evaluate":
            fill(small_disk, (1 + 1) * PAGE)  # the replies', and those of the attacks

    made = run(recipe, small_disk / "runs", leave_nothing)
    assert (made.result.status, made.result.phase) == ("failed", "result")
    assert made.result.measures.adherence is not None
    assert made.result.measures.training_tokens
    assert made.replies()
    assert not (made.folder / MODEL).exists()


def test_no_room_for_the_model_keeps_the_training_and_the_next_launch_goes_on_from_it(
    recipe: Recipe, small_disk: Path
) -> None:
    out = small_disk / "runs"
    state = state_file(recipe, out)

    def no_room(phase: str, folder: Path) -> None:
        if phase == "save":
            assert state.exists()
            fill(small_disk, 4 * PAGE)

    failed = run(recipe, out, no_room, save_every=1e-9)
    assert (failed.result.status, failed.result.phase) == ("failed", "save")
    assert hidden(out) == [state.name, f"{state.name}.lock"]
    (small_disk / "filler").unlink()
    again = run(recipe, out, save_every=1e-9)
    assert (again.result.status, again.result.measures.resumed) == ("ok", 1)
    assert not hidden(out)


@pytest.mark.parametrize(
    ("moment", "error", "status", "resumed"),
    [
        ("evaluate", MemoryError(), "out-of-memory", 1),
        ("reload", OSError(errno.EIO, "Input/output error"), "failed", 1),
        ("step 3", OSError(errno.EDQUOT, "Disk quota exceeded"), "failed", 1),
        ("step 3", ValueError("no such layer"), "failed", 0),
    ],
)
def test_the_training_is_kept_where_going_on_may_help(
    moment: str, error: Exception, status: str, resumed: int, recipe: Recipe, tmp_path: Path
) -> None:
    def fault(now: str, _: Path) -> None:
        if now == moment:
            raise error

    out = tmp_path / "runs"
    assert run(recipe, out, fault, save_every=1e-9).result.status == status
    assert state_file(recipe, out).exists() == (resumed == 1)
    again = run(recipe, out, save_every=1e-9)
    assert (again.result.status, again.result.measures.resumed) == ("ok", resumed)
    assert not hidden(out)


def test_what_a_kept_training_helps() -> None:
    assert [is_of_use(status) for status in ("ok", "skipped", "timed-out", "failed", "out-of-memory")] == [
        False, False, False, True, True,
    ]  # fmt: skip
    free, held = Recipe(), Recipe(memory_budget=2**30)
    full = OSError(errno.ENOSPC, "No space left on device")
    assert [would_fail_again(error, free) for error in (full, MemoryError(), ValueError())] == [False, False, True]
    assert [would_fail_again(error, held) for error in (full, MemoryError(), ValueError())] == [False, True, True]


def test_the_command_says_that_the_training_is_kept(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(now: str, folder: Path) -> None:
        if now == "reload":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ftbench.execution.machine.Workers", lambda: WorkingHere(fault))
    done = call(recipe, ["lora"], tmp_path, "--save-every", "0.000001")
    assert done.returncode == 1
    assert "free some space and run it again" in done.stderr
    assert "lora: the state of its training is kept: the same command goes on from it" in done.stderr
    assert len(list((tmp_path / "runs").glob(".training-*.safetensors"))) == 1
