"""Files are written whole or not at all."""

import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftbench.errors import FtbenchError

_OF_DISK = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space of your quota",
    errno.EROFS: "mount it so that it can be written",
    errno.EIO: "have the disk looked at (dmesg says more)",
    errno.ESTALE: "mount the shared folder again",
}
"""What mends a disk that takes nothing more, whoever wrote to it."""
_MENDS = _OF_DISK | {
    errno.EACCES: "get the right to write there",
    errno.EPERM: "get the right to write there",
    errno.ENAMETOOLONG: "shorten the path",
    errno.ENOENT: "see whether the folder was removed meanwhile",
    errno.ENOTDIR: "move the file out of the way",
    errno.EEXIST: "move the file out of the way",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}
AGAIN = "run it again"
"""What the reason of a run ends with that may come to a better end the next time."""
_DEPTH = 2
"""Objects within objects that are written with a line for each field."""
_IN_RUST = re.compile(r"\(os error (\d+)\)")
"""How safetensors says an errno, in an error that is no OSError."""


def write_text(path: Path, text: str) -> None:
    """Write `text` to a temporary file beside `path`, force it to disk, and rename it into place.

    Raises:
        FtbenchError: the disk is full or the folder cannot be written; what stood at `path` is untouched.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise disk_error(path, error) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, whole or not at all."""
    write_text(path, json_text(value) + "\n")


def json_text(value: Mapping[str, Any]) -> str:
    """Return an object as JSON, a line for each of its fields and for each of theirs: what lies deeper is one line.

    A line for each element of a list of hundreds is read by nobody, and a program takes a third longer for it.
    """
    return _lines(value, 0)


def _lines(value: Any, depth: int) -> str:
    if depth == _DEPTH or not isinstance(value, Mapping) or not value:
        return json.dumps(value, ensure_ascii=False)
    begin, end = "\n" + "  " * (depth + 1), "\n" + "  " * depth
    fields = (f"{json.dumps(key, ensure_ascii=False)}: {_lines(item, depth + 1)}" for key, item in value.items())
    return "{" + begin + ("," + begin).join(fields) + end + "}"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def sync_folder(folder: Path) -> None:
    """Force every file below `folder` to disk, so that a rename of the folder publishes whole files."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def follow_umask(folder: Path) -> None:
    """Give a folder and all below it the rights that the umask leaves.

    Some libraries write for their owner alone, whatever it says: `tempfile`, and safetensors. What it leaves is seen by
    making a folder and a file, for asking the system changes it, in other threads too.
    """
    made = folder / ".rights"
    made.mkdir()
    (made / "file").touch()
    of_folder, of_file = (stat.S_IMODE(path.stat().st_mode) for path in (made, made / "file"))
    (made / "file").unlink()
    made.rmdir()
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            path.chmod(of_folder if path.is_dir() else of_file)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def told_in_one_line(path: Path) -> Iterator[None]:
    """Let what the system refuses at `path` be an error of one line.

    Raises:
        FtbenchError: as `disk_error` says it.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(what: Path | str, error: BaseException, instead: str = "choose another folder") -> FtbenchError:
    """Say in one line why something could not be written, what mends it, and what to do instead."""
    number = errno_of(error)
    mend = _MENDS.get(number or 0)
    advice = f"{mend}, or {instead}" if mend else instead
    return FtbenchError(f"cannot write {what}: {os.strerror(number) if number else error}; {advice}")


def disk_mend(error: BaseException) -> str | None:
    """Say what mends the disk where it was the disk's fault that something was raised; None where it was not."""
    return _OF_DISK.get(errno_of(error) or 0)


def errno_of(error: BaseException) -> int | None:
    """Return what the system said was wrong, also where another error came of it; None where it said nothing."""
    if isinstance(error, OSError):
        return error.errno
    if found := _IN_RUST.search(str(error)):
        return int(found[1])
    return errno_of(error.__cause__) if error.__cause__ is not None else None
