"""Files are written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ftbench.errors import FtbenchError


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
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def disk_error(path: Path, error: OSError) -> FtbenchError:
    """Say in one line why nothing could be written at `path`."""
    return FtbenchError(f"cannot write {path}: {error.strerror or error}; free some space or choose another folder")
