"""Where runs are kept: a folder, or a URL that a folder of the cache mirrors. Nothing here reaches a network."""

import re
from pathlib import Path

from ftbench.errors import UsageError

URL_FILE = ".url"
"""In a folder that mirrors a URL: which."""
OUTBOX = ".outbox"
"""Inside such a folder: runs that were made here and are not at the URL yet."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")


def is_url(text: str) -> bool:
    """Whether this is a URL and no folder's path."""
    return "://" in text


def checked_url(text: str) -> str:
    """Return a URL as it is written down, without a slash at its end.

    Raises:
        UsageError: it holds a password, is made of several, or names what is gone with the process.
    """
    if _PASSWORD.search(text):
        raise UsageError(
            "--out: a password in a URL would stand in results; leave it out, and put it into fsspec's configuration "
            "(~/.config/fsspec, or a variable FSSPEC_PROTOCOL)"
        )
    match = _SCHEME.match(text)
    if match is None or "::" in text:
        raise UsageError(f"--out {text}: URLs that lead through another are not read; name the place itself")
    if match[1].lower() == "memory":
        raise UsageError(f"--out {text} is gone when the command ends; choose a folder, or an s3:// URL")
    url = text.rstrip("/")
    if len(url) <= match.end():
        raise UsageError(f"--out {text} names no place; write {match[0]}BUCKET/FOLDER")
    return url


def url_of(folder: Path) -> str | None:
    """Return the URL that a folder mirrors; None where it is a folder of runs like others."""
    try:
        return (folder / URL_FILE).read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def outbox(out: Path) -> Path:
    """Return the folder that runs are written into: `out` itself, or what is sent from there to the URL."""
    return out if url_of(out) is None else out / OUTBOX


def name_of(out: Path) -> str:
    """Return what a user calls a folder of runs."""
    return url_of(out) or str(out)


def words_for(run: Path) -> list[str]:
    """Return how a run's folder is named on the command line: by its path or, at a URL, as any machine can."""
    url = url_of(run.parent)
    return [run.name, "--out", url] if url else [str(run)]


def address_of(run: Path) -> str:
    """Return where a run's folder is found from other folders and, if it is at a URL, from other machines."""
    url = url_of(run.parent)
    return f"{url}/{run.name}" if url else str(run.resolve())
