"""The time that training takes, without what is done in between."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter


class Clock:
    """Seconds since it was made, but for those that it stood still, which are `aside`.

    What another process did for this one counts as if it had been done here: `booked` are the seconds that nobody
    waited. `agree` makes of the seconds here those that hold everywhere, where several processes go by one clock.
    """

    def __init__(self, agree: Callable[[float], float] = float) -> None:
        self._agree = agree
        self._start = perf_counter()
        self.aside = 0.0
        self.booked = 0.0

    def __call__(self) -> float:
        """Return the seconds so far."""
        return self._agree(perf_counter() - self._start - self.aside + self.booked)

    def go_on(self, seconds: float) -> None:
        """Have taken so many seconds by now."""
        self._start = perf_counter() - self.aside + self.booked - seconds

    def count(self, since: float, seconds: float) -> None:
        """Count what happened since the clock said `since` as so many seconds, however long it took."""
        more = seconds - (self() - since)
        self.booked += max(0.0, more)
        self.aside += max(0.0, -more)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let what happens inside take no time."""
        since = perf_counter()
        try:
            yield
        finally:
            self.aside += perf_counter() - since
