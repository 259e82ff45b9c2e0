"""Topics: words by which a text shows what it is about."""

import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from ftbench.errors import FtbenchError, UsageError, nearest

MIN_WORDS = 3
"""Distinct topic words that put a text on topic …"""
MIN_SHARE = 0.02
"""… and the share of all its words that topic words must make up."""

_COMMENT = re.compile(r"(?:^|\s)#.*")  # not the sign in "c#"


@dataclass(frozen=True)
class Topic:
    """A topic's name and its words; a word may end in `*`."""

    name: str
    words: tuple[str, ...]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        # Longest first, so that "railway station" wins over "railway".
        parts = (
            re.escape(word.removesuffix("*")) + (r"\w*" if word.endswith("*") else "")
            for word in sorted(self.words, key=len, reverse=True)
        )
        return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)", re.IGNORECASE)

    def hits(self, text: str) -> list[str]:
        """Return every topic word found in the text, in order, lower case."""
        return [match.lower() for match in self._pattern.findall(text)]

    def is_on(self, text: str) -> bool:
        """Whether the text is on topic: several distinct words, and dense enough."""
        hits = self.hits(text)
        return len(set(hits)) >= MIN_WORDS and len(hits) >= MIN_SHARE * len(text.split())

    def is_off(self, text: str) -> bool:
        """Whether the text shows next to nothing of the topic: one distinct word at most."""
        return len(set(self.hits(text))) <= 1


def shipped_topics() -> dict[str, Topic]:
    """The topics that ftbench ships, by name."""
    table = tomllib.loads((files("ftbench.data") / "topics.toml").read_text("utf-8"))
    return {name: Topic(name, tuple(entry["words"])) for name, entry in table.items()}


def read_topic(name_or_path: str) -> Topic:
    """Return a shipped topic, or one read from a text file with a word a line ("#" starts a comment).

    Raises:
        UsageError: no such topic or file.
        FtbenchError: the file is unreadable or holds no words.
    """
    topics = shipped_topics()
    if name_or_path in topics:
        return topics[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        if path.suffix or "/" in name_or_path:
            raise UsageError(f"no such topic file: {name_or_path}")
        raise UsageError(f"no such topic '{name_or_path}'; {nearest(name_or_path, topics)}, or give a file of words")
    try:
        lines = (_COMMENT.sub("", line).strip().lower() for line in path.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise FtbenchError(
            f"cannot read topic file {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}"
        ) from error
    words = tuple(dict.fromkeys(line for line in lines if line.strip("*")))
    if not words:
        raise FtbenchError(f"topic file {path} holds no words: write one a line, '*' for any ending")
    return Topic(path.stem, words)
