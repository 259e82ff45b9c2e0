"""What a user did wrong, said in one line."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeVar

Kind = TypeVar("Kind")


class FtbenchError(Exception):
    """A mistake that the user can mend: one line that says what happened, where, and what to do next."""


class UsageError(FtbenchError):
    """The command's own words are wrong (exit code 2): an unknown name, an option that does not parse."""


class Skip(FtbenchError):  # noqa: N818  what happened is no error
    """An algorithm does not apply to this model or data; the run's status is then `skipped`, this its reason."""


class ContractError(FtbenchError):
    """A plugin did other than its contract says; its author can mend it. `where` names the method, if it is known."""

    def __init__(self, text: str, where: str | None = None) -> None:
        super().__init__(text)
        self.where = where


class Unpredictable(FtbenchError):  # noqa: N818  what happened is no error
    """What an algorithm takes in memory cannot be told beforehand, for this reason; it can be run all the same."""


def returned(value: object, kind: type[Kind], by: type, method: str) -> Kind:
    """Hand on what a plugin's method returned, if it is what its contract says.

    Args:
        value: that was returned.
        kind: what it must be.
        by: the plugin's class.
        method: of the class.

    Raises:
        FtbenchError: it is something else; the method is named.
    """
    if isinstance(value, kind):
        return value
    raise FtbenchError(
        f"{by.__module__}, {by.__qualname__}.{method} returned {type(value).__name__}, and must return "
        f"{kind.__module__}.{kind.__qualname__}"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """End a "no such …" message: the nearest of the known names, or all of them."""
    names = sorted(known)
    close = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + (", ".join(names) or "none")
