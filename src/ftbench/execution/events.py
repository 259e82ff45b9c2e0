"""What a run tells while it goes on: one JSON object a line on the worker's standard output."""

import json
import os
import select
import threading
from dataclasses import asdict, dataclass
from typing import Any

START = "start"
"""The phase before all others: the worker is started."""


@dataclass(frozen=True)
class PhaseBegan:
    """A phase began; `total` counts what it will go through (tokens, prompts), where that is known."""

    phase: str
    total: int | None = None


@dataclass(frozen=True)
class Progress:
    """How far a phase is, and the figures of training: loss, real tokens/s, bytes at the peak; a step has its `row`."""

    done: int
    loss: float | None = None
    tokens_per_second: float | None = None
    memory: int | None = None
    row: dict[str, Any] | None = None


@dataclass(frozen=True)
class Traced:
    """What a plugin did, where FTBENCH_TRACE asks for it."""

    line: str


Event = PhaseBegan | Progress | Traced
_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (PhaseBegan, Progress, Traced)}


class EventWriter:
    """Writes events to a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def end_with_reader(self) -> None:
        """From now on, end this process as soon as nobody reads, whatever it is doing."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, 0)  # errors alone: that the other end of the pipe was closed
        poll.poll()
        os._exit(1)

    def send(self, event: Event) -> None:
        """Write one event; a reader that is gone ends the process."""
        try:
            os.write(self._descriptor, f"{write_event(event)}\n".encode())
        except BrokenPipeError:
            os._exit(1)  # the launcher died; nobody will publish this run


def write_event(event: Event) -> str:
    """Write one event as a line, without its end."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def read_event(line: str) -> Event | None:
    """Read a line back; None where it is no event."""
    try:
        values: dict[str, Any] = json.loads(line)
        return _KINDS[values.pop("event")](**values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
