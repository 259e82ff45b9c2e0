"""What is said of a disk or a cache that takes nothing, in one line."""

import errno
import os
from pathlib import Path

import pytest

from ftbench.files import disk_error, disk_mend, write_text
from ftbench.models import bundled
from ftbench.recipe import Recipe
from ftbench.results.store import publish, staging
from one_line import one_line
from small_disk import fill, make_read_only
from working_here import run

# What is said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; free some space, or choose another folder"),
        (errno.EDQUOT, "free some space of your quota"),
        (errno.EROFS, "mount it so that it can be written"),
        (errno.EACCES, "Permission denied; get the right to write there, or choose another folder"),
        (errno.EIO, "have the disk looked at"),
        (errno.ENAMETOOLONG, "shorten the path"),
        (errno.ESTALE, "mount the shared folder again"),
        (errno.ENOENT, "see whether the folder was removed"),
        (errno.ELOOP, "Too many levels of symbolic links; choose another folder"),
    ],
)
def test_every_fault_of_a_disk_has_its_own_mend(number: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    Path("there").write_text("old")
    with one_line("cannot write there: ", words):
        write_text(Path("there"), "new")
    assert Path("there").read_text() == "old"
    assert [path.name for path in Path().iterdir()] == ["there"]


def test_a_fault_of_the_disk_is_known_whoever_says_it() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    said = disk_error(Path("x"), full)
    said.__cause__ = full
    assert disk_mend(said) == "free some space"
    rust = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert disk_mend(rust) == "free some space"
    assert "No space left on device; free some space" in str(disk_error(Path("x"), rust))
    for other in (ValueError("28"), FileNotFoundError(errno.ENOENT, "x"), OSError("in words alone")):
        assert disk_mend(other) is None


def test_a_name_that_is_too_long_and_a_publishing_that_fails_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_line("File name too long; shorten the path"), staging(tmp_path / ("x" * 300)):
        pass

    def refuse(_: Path) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")  # as NFS says it, when what was written is forced to disk

    monkeypatch.setattr("ftbench.results.store.sync_folder", refuse)
    with one_line(str(tmp_path), "Disk quota exceeded", "quota"), staging(tmp_path) as folder:
        publish(folder, tmp_path, Recipe())
    assert not list(tmp_path.iterdir())


# The cache


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_cache_that_takes_nothing_costs_a_line_in_the_log(
    fault: str, recipe: Recipe, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("FTBENCH_CACHE", str(small_disk))
    if fault == "full":
        fill(small_disk, 0)
    else:
        make_read_only(small_disk)
    made = run(recipe, tmp_path / "runs")
    assert made.result.status == "ok"
    assert f"every run makes its own judge: cannot write {small_disk / 'made'}" in caplog.text
    assert not list(small_disk.rglob("*.json*"))


def test_half_of_a_model_does_not_stay_in_a_cache_that_is_full(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import save_file

    def convert(_: Path, made: Path) -> None:
        made.mkdir()
        (made / "config.json").write_text("{}")
        save_file({"weights": torch.zeros(2**20)}, made / "model.safetensors")  # 4 MiB into 2

    monkeypatch.setattr(bundled, "_find_gguf", lambda _: tmp_path / "gguf")
    monkeypatch.setattr(bundled, "_convert", convert)
    text = f"cannot write the model cache {small_disk}: No space left on device; free some space, or set FTBENCH_CACHE"
    with one_line(text):
        bundled.bundled_model(small_disk)
    assert [path.suffix for path in small_disk.iterdir()] == [".lock"]
    make_read_only(small_disk)
    with one_line("Read-only file system", "set FTBENCH_CACHE to another folder"):
        bundled.bundled_model(small_disk / "other")
