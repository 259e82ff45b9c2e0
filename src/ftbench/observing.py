"""Looks at what an algorithm is asked to do, without the algorithm knowing."""

import functools
from collections.abc import Callable
from typing import Any

from ftbench.algorithm import Algorithm

METHODS = ("skip", "system_prompt", "adapt", "train", "loss", "without_effect", "save", "load", "figures", "warnings")

Around = Callable[[str, tuple[Any, ...], Callable[[], Any]], Any]
"""Is told the method and its arguments, and returns what calling it returned."""


class _Observed:
    """Stands in an algorithm's place of a method; a copy of the algorithm is not observed."""

    def __init__(self, algorithm: Algorithm, method: str, around: Around) -> None:
        self._own = getattr(algorithm, method)
        self._algorithm, self._method, self._around = algorithm, method, around
        functools.update_wrapper(self, self._own)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._around(self._method, arguments, lambda: self._own(*arguments, **named))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(type(self._algorithm), self._method).__get__(memo[id(self._algorithm)])


def observe(algorithm: Algorithm, around: Around) -> None:
    """Have every call of the algorithm's methods, also its own calls of them, go through `around`."""
    for method in METHODS:
        algorithm.__dict__[method] = _Observed(algorithm, method, around)
