"""The time that training takes, without what is done in between."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter


class Clock:
    """Seconds since it was made, but for those that it stood still, which are `aside`.

    `agree` makes of the seconds here those that hold everywhere, where several processes go by one clock.
    """

    def __init__(self, agree: Callable[[float], float] = float) -> None:
        self._agree = agree
        self._start = perf_counter()
        self.aside = 0.0

    def __call__(self) -> float:
        """Return the seconds so far."""
        return self._agree(perf_counter() - self._start - self.aside)

    def go_on(self, seconds: float) -> None:
        """Have taken so many seconds by now."""
        self._start = perf_counter() - self.aside - seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let what happens inside take no time."""
        since = perf_counter()
        try:
            yield
        finally:
            self.aside += perf_counter() - since
