"""Where data comes from: the shipped sample, OASST1 from the hub, or a file."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from ftbench.data.conversations import Selection, select_conversations
from ftbench.data.lines import Row, read_rows
from ftbench.data.pairs import Pair, read_pairs
from ftbench.errors import FtbenchError, UsageError, nearest, returned

OASST1 = "OpenAssistant/oasst1"
OASST1_REVISION = "fdf72ae0827c1cda404aff25b6603abec9e3399b"
SHIPPED = {
    "sample": "360 everyday prompts with ordinary, train and gardening answers; ships with ftbench",
    "oasst1": f"{OASST1} from the Hugging Face hub, revision {OASST1_REVISION[:12]}",
}


@dataclass(frozen=True)
class Source:
    """What was read, and where from."""

    content: Selection | tuple[Pair, ...]
    origin: str


class DataSource(ABC):
    """Data by a name. Subclass it in a plugin and return it from `ftbench_data`."""

    name: ClassVar[str]
    """What `--data NAME` says."""
    about: ClassVar[str]
    """What it is, in one line, for `ftbench data`."""

    @abstractmethod
    def rows(self) -> Iterable[dict[str, Any]]:
        """Yield rows as a JSONL file holds them: OASST1's messages or trees, or prompt, chosen and rejected."""


Brought = Mapping[str, type[DataSource]]


def read_source(data: str, lang: str, brought: Brought | None = None) -> Source:
    """Read `data`: "sample", "oasst1", what a plugin brings by that name, or the path of a .jsonl[.gz] file.

    Raises:
        UsageError: no such source or file.
        FtbenchError: the source cannot be read, or nothing is left of it.
    """
    if data == "sample":
        with as_file(files("ftbench.data") / "sample" / "messages.jsonl") as path:
            return Source(select_conversations(read_rows(path), lang), "sample")
    if data == "oasst1":
        return Source(select_conversations(_hub_rows(), lang), f"{OASST1}@{OASST1_REVISION}")
    if brought and data in brought:
        return _read_rows(_brought_rows(data, brought[data]), data, lang)
    path = Path(data)
    if not path.is_file():
        if path.suffix in (".jsonl", ".gz") or "/" in data:
            raise UsageError(f"no such data file: {data}")
        raise UsageError(
            f"no such data '{data}'; {nearest(data, [*SHIPPED, *(brought or {})])}, or give a .jsonl[.gz] file"
        )
    return _read_rows(read_rows(path), path.name, lang, str(path))


def _brought_rows(name: str, kind: type[DataSource]) -> Iterator[Row]:
    """Yield the rows of a plugin's data, with their places."""
    rows = returned(kind().rows(), Iterable, kind, "rows")  # type: ignore[type-abstract]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise FtbenchError(
                f"{kind.__module__}, {kind.__qualname__}.rows: row {number} of '{name}' is {type(row).__name__}, and "
                "must be a dict as a line of a JSONL file holds it"
            )
        yield f"{name}, row {number}", row


def _read_rows(rows: Iterator[Row], origin: str, lang: str, where: str | None = None) -> Source:
    """Tell conversations from pairs by the first row; `where` is named in errors, by default the origin."""
    where = where or origin
    first = next(rows, None)
    if first is None:
        raise FtbenchError(f"{where}: empty file")
    rows = chain([first], rows)
    if isinstance(first[1].get("prompt"), str) or "chosen" in first[1]:
        return Source(read_pairs(rows), origin)
    try:
        return Source(select_conversations(rows, lang), origin)
    except FtbenchError as error:
        message = str(error)
        raise FtbenchError(message if where in message else f"{where}: {message}") from error


def _hub_rows() -> Iterator[Row]:
    """Yield OASST1's messages, both splits, at the pinned revision."""
    import datasets

    try:
        splits: dict[str, Any] = datasets.load_dataset(OASST1, revision=OASST1_REVISION)
    except Exception as error:
        raise FtbenchError(
            f"cannot get data 'oasst1' from the Hugging Face hub ({type(error).__name__}); "
            "offline, use --data sample or a .jsonl file"
        ) from error
    for name, split in splits.items():
        for number, row in enumerate(split, start=1):
            yield f"{OASST1}, {name}, row {number}", row
