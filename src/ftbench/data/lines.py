"""Reads JSONL, plain or gzipped; what cannot be read is named by file and line."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftbench.errors import FtbenchError

Row = tuple[str, dict[str, Any]]
"""Where a row stands ("file.jsonl, line 3") and the row."""


def read_rows(path: Path) -> Iterator[Row]:
    """Yield every JSON object of a .jsonl or .jsonl.gz file, with its place.

    Raises:
        FtbenchError: the file is missing, unreadable or cut short, or a line is not a JSON object.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                if line.strip():
                    yield where, _parse(line, where)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FtbenchError(f"{path}: not a whole gzip file (after line {number}): {error}; fetch it again") from error
    except OSError as error:
        raise FtbenchError(f"cannot read {path}: {error.strerror or error}") from error


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        if rb"\u" in line:  # an escape can hold what no text may: one half of a surrogate pair
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise FtbenchError(f"{where}: not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise FtbenchError(f"{where}: not valid JSON ({error.msg}); is the file cut short?") from error
    except (ValueError, RecursionError) as error:
        raise FtbenchError(f"{where}: JSON with too long a number, or nested too deeply") from error
    if not isinstance(row, dict):
        raise FtbenchError(f"{where}: a JSON object is needed, found {type(row).__name__}")
    return row
