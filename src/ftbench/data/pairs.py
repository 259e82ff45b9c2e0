"""The user's own examples: JSONL with `prompt`, `chosen` and, where there is one, `rejected`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ftbench.data.lines import Row
from ftbench.errors import FtbenchError, nearest

FIELDS = ("prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A prompt with the wanted completion and, perhaps, the ordinary one."""

    prompt: str
    chosen: str
    rejected: str | None


def read_pairs(rows: Iterable[Row]) -> tuple[Pair, ...]:
    """Read every row.

    Raises:
        FtbenchError: a field is missing, unknown, empty or not text, or chosen and rejected are the same; by line.
    """
    return tuple(_read_pair(where, row) for where, row in rows)


def _read_pair(where: str, row: dict[str, Any]) -> Pair:
    for field in row:
        if field not in FIELDS:
            raise FtbenchError(f"{where}: no such field {field!r}; {nearest(field, FIELDS)}")
    prompt, chosen = (_text(where, row, field) for field in ("prompt", "chosen"))
    rejected = _text(where, row, "rejected") if row.get("rejected") is not None else None
    if chosen == rejected:
        raise FtbenchError(f"{where}: 'chosen' and 'rejected' are the same")
    return Pair(prompt, chosen, rejected)


def _text(where: str, row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise FtbenchError(f"{where}: field '{field}' is missing or not text")
    if not value.strip():
        raise FtbenchError(f"{where}: field '{field}' is empty")
    return value.strip()
