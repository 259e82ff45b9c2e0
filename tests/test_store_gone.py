"""A folder of runs that is removed in the middle of a run, or may only be read."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ftbench.recipe import Recipe
from ftbench.results.store import RECIPE, RESULT, read_runs
from small_disk import make_read_only
from strangers import ftbench_here
from working_here import WorkingHere, call, run


def hidden(out: Path) -> list[str]:
    return [path.name for path in out.glob(".*")]


# Gone


def test_a_store_that_is_removed_midway_ends_the_command_with_one_line(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"

    def fault(now: str, folder: Path) -> None:
        if now == "train":
            shutil.rmtree(out)

    monkeypatch.setattr("ftbench.execution.machine.Workers", lambda: WorkingHere(fault))
    done = call(recipe, ["lora", "full"], tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ftbench: the folder of runs {out} was removed while lora ran")
    assert "Traceback" not in done.stderr
    assert "full: " not in done.stderr
    assert not out.exists()


def test_a_run_whose_own_folder_is_removed_fails_and_the_others_go_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(now: str, folder: Path) -> None:
        if now == "train" and "lora" in (folder / RECIPE).read_text():
            shutil.rmtree(folder)

    monkeypatch.setattr("ftbench.execution.machine.Workers", lambda: WorkingHere(fault))
    done = call(recipe, ["lora", "full"], tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    ended = {made.result.recipe.algorithm: made for made in read_runs(tmp_path / "runs")[0]}
    assert {name: made.result.status for name, made in ended.items()} == {"base": "ok", "lora": "failed", "full": "ok"}
    assert ended["lora"].result.reason == "its folder was removed while it ran; run it again"
    assert (ended["lora"].folder / RECIPE).is_file()
    assert ended["full"].result.baseline is not None
    assert not hidden(tmp_path / "runs")


def test_without_the_run_that_others_are_measured_against_the_command_ends(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs"

    def fault(now: str, folder: Path) -> None:
        if now == "save":
            shutil.rmtree(next(out.glob("base-*")))

    monkeypatch.setattr("ftbench.execution.machine.Workers", lambda: WorkingHere(fault))
    done = call(recipe, ["lora", "full"], tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "which full is to be measured against, was removed meanwhile; run the command again" in last
    (left,) = read_runs(out)[0]
    assert (left.result.recipe.algorithm, left.result.status) == ("lora", "ok")


def test_a_worker_without_a_log_is_explained_all_the_same(recipe: Recipe, tmp_path: Path) -> None:
    def fault(now: str, folder: Path) -> None:
        if now == "train":
            for path in folder.iterdir():
                path.unlink()
            os.mkfifo(folder / ".half")  # neither a file nor a folder
            raise SystemExit(3)

    out = tmp_path / "runs"
    made = run(recipe, out, fault)
    assert made.result.status == "failed"
    assert made.result.reason == "the process ended with code 3: no output"
    assert sorted(path.name for path in made.folder.iterdir()) == [RESULT]


# Read-only


def test_what_is_there_can_be_read_from_a_store_that_cannot_be_written(
    recipe: Recipe, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftbench.execution.machine.Workers", WorkingHere)
    assert call(recipe, ["lora"], small_disk).returncode == 0
    make_read_only(small_disk)
    again = call(recipe, ["lora"], small_disk)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already there") == 2
    assert "| lora" in again.stdout
    shown = ftbench_here("show", "lora", "--out", small_disk / "runs", cwd=small_disk)
    assert shown.returncode == 0, shown.stderr
    more = call(recipe, ["full"], small_disk)
    assert more.returncode == 1
    line = more.stderr.splitlines()[-1]
    assert "Read-only file system" in line
    assert "mount it so that it can be written, or choose another folder" in line
    assert "free some space" not in line


def set_immutable(folder: Path, *, on: bool) -> None:
    """Let nobody, root included, write into a folder, as on a server that was told so; or again let them."""
    done = subprocess.run(["chattr", f"{'+' if on else '-'}i", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a folder cannot be made immutable here: {done.stderr.strip()}")


@pytest.mark.skipif(shutil.which("chattr") is None, reason="there is no chattr here")
def test_a_store_that_can_no_longer_be_written_midway_loses_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[Path] = []

    def lock(phase: str, folder: Path) -> None:
        if phase == "save":
            for each in (folder, folder.parent):
                set_immutable(each, on=True)
                locked.append(each)

    monkeypatch.setattr("ftbench.execution.machine.Workers", WorkingHere)
    assert call(recipe, ["lora"], tmp_path).returncode == 0
    whole = {path: path.read_bytes() for path in (tmp_path / "runs").glob("*/*") if path.is_file()}
    monkeypatch.setattr("ftbench.execution.machine.Workers", lambda: WorkingHere(lock))
    try:
        ended = call(recipe, ["full"], tmp_path)
    finally:
        for each in locked:
            set_immutable(each, on=False)
    assert ended.returncode == 1
    line = ended.stderr.splitlines()[-1]
    assert "Operation not permitted" in line
    assert "Traceback" not in ended.stderr
    assert {path: path.read_bytes() for path in whole} == whole
    monkeypatch.setattr("ftbench.execution.machine.Workers", WorkingHere)
    again = call(recipe, ["full"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert {run.result.status for run in read_runs(tmp_path / "runs")[0]} == {"ok"}
    # What could not be removed goes once the process that made it is gone: here it is this one.
    assert all(name.startswith(".unfinished-") for name in hidden(tmp_path / "runs"))
