"""What runs share: made by the first that needs it, read by the others."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

import ftbench
from ftbench.errors import FtbenchError
from ftbench.files import told_in_one_line, write_text
from ftbench.models.resolve import cache_folder

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
DAYS = 30
"""After which a file that nobody read is removed."""
PAUSE = 0.1
"""Seconds after which who waits for what another makes looks again."""
_MAKERS = ("scikit-learn", "numpy", "tokenizers", "transformers")


def once(kind: str, of: Mapping[str, Any], adapter: TypeAdapter[T], make: Callable[[], T]) -> T:
    """Return what was made before of the same things by the same code, or make it and keep it.

    Of runs side by side one makes it and the others wait; where that one is killed or fails, the next makes it. Where
    the file system has no locks, each makes it and writes a whole file. A cache that cannot be read or written costs
    time and a line in the run's log, nothing else.

    Args:
        kind: what it is, in one word.
        of: all that it is made of, as JSON has it.
        adapter: its type.
        make: makes it.
    """
    folder = cache_folder() / "made"
    text = json.dumps([kind, of, source_digest(), [version(package) for package in _MAKERS]], sort_keys=True)
    path = folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()}.json"
    found = _read(path, adapter)
    if found is None:
        with suppress(OSError):  # told where it is to be kept
            folder.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock"), kind):
            found = _read(path, adapter)
            if found is None:
                found = (make(),)
                _keep(kind, path, adapter.dump_json(found[0]).decode())
    return found[0]


def _read(path: Path, adapter: TypeAdapter[T]) -> tuple[T] | None:
    with suppress(OSError, ValidationError):
        found = adapter.validate_json(path.read_bytes())
        with suppress(OSError):  # what may only be read, or is another user's, is good all the same
            os.utime(path)
        return (found,)
    return None


def _keep(kind: str, path: Path, text: str) -> None:
    try:
        with told_in_one_line(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except FtbenchError as error:
        _LOG.warning("every run makes its own %s: %s", kind, error)
        return
    with suppress(OSError):
        _remove_unread(path.parent)


@contextmanager
def _alone(path: Path, kind: str) -> Iterator[None]:
    """Let one process at a time do what happens inside; where the lock is not to be had, nobody waits.

    The system lets go of it, too, when the process is killed. The file goes last, while it is held.
    """
    lock = FileLock(path, poll_interval=PAUSE)
    with suppress(OSError, NotImplementedError):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _LOG.warning("another run is making the same %s: this one waits for it", kind)
            lock.acquire()
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                path.unlink()
            lock.release()


@cache
def source_digest() -> str:
    """SHA-256 of this package's source: what other code made is not what this would make."""
    root = Path(ftbench.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _remove_unread(folder: Path) -> None:
    """Remove what is old, what a process that was killed left behind with it."""
    for path in folder.iterdir():
        if path.stat().st_mtime < time.time() - DAYS * 86400:
            path.unlink(missing_ok=True)
