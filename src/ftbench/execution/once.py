"""What runs share: made by the first that needs it, read by the others."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

import ftbench
from ftbench.errors import FtbenchError
from ftbench.files import told_in_one_line, write_text
from ftbench.models.resolve import cache_folder

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
DAYS = 30
"""After which a file that nobody read is removed."""
_MAKERS = ("scikit-learn", "numpy", "tokenizers", "transformers")


def once(kind: str, of: Mapping[str, Any], adapter: TypeAdapter[T], make: Callable[[], T]) -> T:
    """Return what was made before of the same things by the same code, or make it and keep it.

    Runs side by side may both make it; each writes a whole file. A cache that cannot be read or written costs time and
    a line in the run's log, nothing else.

    Args:
        kind: what it is, in one word.
        of: all that it is made of, as JSON has it.
        adapter: its type.
        make: makes it.
    """
    folder = cache_folder() / "made"
    text = json.dumps([kind, of, source_digest(), [version(package) for package in _MAKERS]], sort_keys=True)
    path = folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()}.json"
    with suppress(OSError, ValidationError):
        found = adapter.validate_json(path.read_bytes())
        with suppress(OSError):  # what may only be read, or is another user's, is good all the same
            os.utime(path)
        return found
    made = make()
    try:
        with told_in_one_line(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(path, adapter.dump_json(made).decode())
    except FtbenchError as error:
        _LOG.warning("every run makes its own %s: %s", kind, error)
        return made
    with suppress(OSError):
        _remove_unread(folder)
    return made


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
    for path in folder.glob("*.json"):
        if path.stat().st_mtime < time.time() - DAYS * 86400:
            path.unlink(missing_ok=True)
