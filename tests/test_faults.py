"""What a run leaves when it is interrupted, killed, or has nowhere to write."""

import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ftbench.results.store import read_runs, staging
from small_disk import fill, mounted
from strangers import FAULTS, command_line, environment, ftbench, install


@dataclass(frozen=True)
class Place:
    """A folder of runs that two launchers wrote at once, and what a further run there is given."""

    out: Path
    plugins: Path
    settings: list[str]
    launchers: list[subprocess.CompletedProcess[str]]

    def copy(self, out: Path) -> Path:
        """Copy the first of the runs, so that the baseline needs not be run again."""
        first = read_runs(self.out)[0][0].folder
        shutil.copytree(first, out / first.name)
        return out


@pytest.fixture(scope="module")
def place(tiny_llama: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Let two launchers write the same recipe into the same folder at once."""
    out = tmp_path_factory.mktemp("place") / "runs"
    plugins = install(tmp_path_factory.mktemp("site"), "ftbench-faults", FAULTS)
    settings = ["--model", str(tiny_llama), "--data", str(pairs_file), "--topic", "boats"]
    settings += ["--tokens", "2000", "--set", "max_new_tokens=8"]
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ftbench, "run", *settings, "--algo", "base", "--out", out) for _ in range(2)]
    return Place(out, plugins, settings, [call.result() for call in calls])


def start(place: Place, out: Path, phase: str, *arguments: str) -> tuple["subprocess.Popen[str]", psutil.Process]:
    """Start a launcher, wait until its worker is in `phase`, return both."""
    launcher = subprocess.Popen(
        command_line("run", *place.settings, "--out", out, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(place.plugins),
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )
    assert launcher.stderr is not None
    for line in launcher.stderr:
        if f": {phase}" in line:
            (worker,) = psutil.Process(launcher.pid).children()
            return launcher, worker
    raise AssertionError(f"the launcher ended before phase {phase}")


def _hear_interrupts() -> None:
    """Undo what a child inherits from a test process that is one of several: there interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until_gone(process: psutil.Process, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_two_launchers_in_one_folder_lose_nothing(place: Place) -> None:
    for done in place.launchers:
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    runs, warnings = read_runs(place.out)
    assert not warnings
    assert [run.result.status for run in runs] == ["ok", "ok"]
    first, second = sorted(run.folder.name for run in runs)
    assert second == f"{first}-2"
    assert runs[0].replies() == runs[1].replies()
    assert not list(place.out.glob(".*"))


def test_interrupt_while_training_leaves_nothing(place: Place, tmp_path: Path) -> None:
    out = place.copy(tmp_path / "runs")
    launcher, worker = start(place, out, "train", "--algo", "sleeps")
    assert list(out.glob(".unfinished-*"))
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 1
    assert said.strip() == "ftbench: stopped; finished runs are kept"
    assert wait_until_gone(worker, 0.1)
    runs, warnings = read_runs(out)
    assert not warnings
    assert [run.result.recipe.algorithm for run in runs] == ["base"]
    assert [path.name for path in out.iterdir()] == [runs[0].folder.name]


def test_killed_launcher_takes_its_worker_along_and_the_next_run_sweeps(place: Place, tmp_path: Path) -> None:
    out = place.copy(tmp_path / "runs")
    launcher, worker = start(place, out, "train", "--algo", "sleeps")
    launcher.kill()
    launcher.communicate(timeout=60)
    assert wait_until_gone(worker, 30)
    (left,) = out.glob(".unfinished-*")
    assert (left / "recipe.toml").is_file()
    table = ftbench("table", "--out", out)
    assert (table.returncode, table.stderr) == (0, "")
    done = ftbench("run", *place.settings, "--out", out, "--algo", "skips", plugins=place.plugins)
    assert done.returncode == 0
    assert not list(out.glob(".*"))
    assert [run.result.status for run in read_runs(out)[0]] == ["ok", "skipped"]


def test_unfinished_runs_of_launchers_that_may_live_are_not_swept(tmp_path: Path) -> None:
    with staging(tmp_path) as mine:
        process, _, machine = mine.name.removeprefix(".unfinished-").partition("@")
        ended = mine.name.replace(process, str(2**22 + 1))  # beyond what a Linux process can be called
        # Of another machine; of one that goes by this one's name, and of this one before it was started anew; of a
        # container that goes by this one's name.
        others = [ended.replace("@", "@another-"), ended.replace(f"{machine[-21:-9]}", "0" * 12)]
        others.append(ended.replace(f"@{platform.node()}.", f"@{platform.node()}.1"))
        assert len({ended, *others}) == 4
        for name in (ended, *others):
            (tmp_path / name).mkdir()
        with staging(tmp_path) as other:
            assert {path.name for path in tmp_path.iterdir()} == {mine.name, other.name, *others}


def test_of_an_ended_process_whose_number_was_given_again_the_unfinished_run_is_swept(tmp_path: Path) -> None:
    with staging(tmp_path) as mine:
        process = mine.name.removeprefix(".unfinished-").partition("@")[0]
        assert process.startswith(f"{os.getpid()}.")
        earlier = tmp_path / mine.name.replace(process, f"{os.getpid()}.1")
        earlier.mkdir()
        with staging(tmp_path) as other:
            assert {path.name for path in tmp_path.iterdir()} == {mine.name, other.name}


def test_an_unfinished_run_that_lay_still_for_a_month_is_swept_whosever_it_was(tmp_path: Path) -> None:
    old, written = (tmp_path / f".unfinished-1.2@elsewhere-{name}" for name in "ab")
    for folder in (old, written):
        folder.mkdir()
        (folder / "log.txt").touch()
        long_ago = time.time() - 31 * 86400
        os.utime(folder, (long_ago, long_ago))
    os.utime(old / "log.txt", (long_ago, long_ago))
    with staging(tmp_path) as mine:
        assert {path.name for path in tmp_path.iterdir()} == {mine.name, written.name}


@pytest.mark.parametrize("out", ["file/runs", "file", "/proc/nope", "/dev/null"])
def test_folder_that_cannot_be_written_costs_one_line(place: Place, out: str) -> None:
    Path("file").write_text("in the way")
    done = ftbench("run", *place.settings, "--out", out, "--algo", "base")
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert out in done.stderr
    assert Path("file").read_text() == "in the way"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    with mounted(tmp_path / "disk", "512k") as folder:
        yield folder


def assert_earlier_run_is_whole(out: Path) -> None:
    base = next(run for run in read_runs(out)[0] if run.result.recipe.algorithm == "base")
    assert base.result.status == "ok"
    assert len(base.replies()) == 12


def test_disk_without_any_room_costs_one_line(place: Place, small_disk: Path) -> None:
    out = place.copy(small_disk / "runs")
    fill(small_disk, leave=0)
    done = ftbench("run", *place.settings, "--out", out, "--algo", "full")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "already there" not in line]
    assert "No space left on device" in line
    assert str(out) in line
    assert_earlier_run_is_whole(out)
    assert not list(out.glob(".*"))


def test_disk_without_room_for_the_model_becomes_a_failed_run(place: Place, small_disk: Path) -> None:
    out = place.copy(small_disk / "runs")
    fill(small_disk, leave=80 * 1024)  # the model takes 110
    done = ftbench("run", *place.settings, "--set", "precision=float32", "--out", out, "--algo", "full")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (run,) = [run for run in read_runs(out)[0] if run.result.recipe.algorithm == "full"]
    assert (run.result.status, run.result.phase) == ("failed", "save")
    assert run.result.reason is not None
    assert "No space left on device" in run.result.reason
    assert not (run.folder / "model").exists()
    assert_earlier_run_is_whole(out)
    assert not list(out.glob(".*"))


def test_disk_that_fills_up_meanwhile_costs_one_line(place: Place, small_disk: Path) -> None:
    out = place.copy(small_disk / "runs")
    done = ftbench("run", *place.settings, "--out", out, "--algo", "fills", plugins=place.plugins, cwd=small_disk)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert "No space left on device" in line
    assert_earlier_run_is_whole(out)
    assert not list(out.glob(".*"))
