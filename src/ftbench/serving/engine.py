"""One thread that writes all replies: rows join and leave between two tokens (Yu et al. 2022, Orca, OSDI '22).

transformers' own continuous batching was tried first (5.23, on the CPU): of 64 recorded replies it gave 26, for its
rounding hangs on the batch, it knows no seed of a request, and it wants the model's attention back.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Literal

from ftbench.memory.fit import free_memory, is_out_of_memory
from ftbench.models.decoding import Decoder, Row
from ftbench.serving.limits import Limits
from ftbench.serving.sampling import Sampler
from ftbench.serving.served import Served
from ftbench.serving.single import write_single
from ftbench.serving.ticket import Refused, Ticket, Why, Writer
from ftbench.serving.writing import ReplyText

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Desk:
    """What is being written with one model."""

    served: Served
    decoder: Decoder
    writers: dict[Row, Writer] = field(default_factory=dict)

    @property
    def reserved(self) -> int:
        """Tokens that its rows may come to."""
        return sum(writer.ticket.room for writer in self.writers.values())


class Engine:
    """Takes tickets from any thread, and writes their replies in its own."""

    def __init__(self, models: Sequence[Served], limits: Limits) -> None:
        self.limits = limits
        self._desks = {served.name: Desk(served, Decoder(served.model, limits.cache_tokens)) for served in models}
        self._waiting: deque[Ticket] = deque()
        self._begun: Ticket | None = None
        self._over: Literal["stopping", "broken"] | None = None
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """End; what is unfinished is refused, after so many seconds even where a pass is still going on."""
        with self._change:
            self._over = self._over or "stopping"
            self._change.notify()
        self._thread.join(seconds)
        self._refuse_everybody()

    @property
    def over(self) -> Why | None:
        """Why it writes no more; None while it does."""
        return self._over

    @property
    def waiting(self) -> int:
        """Requests without a place."""
        return len(self._waiting)

    @property
    def writing(self) -> int:
        """Replies that are being written."""
        return sum(len(desk.writers) for desk in self._desks.values())

    @property
    def held_tokens(self) -> int:
        """Tokens that there is memory of keys and values for, now."""
        return sum(desk.decoder.held for desk in self._desks.values())

    def submit(self, ticket: Ticket) -> None:
        """Put a request into the queue; it is refused at once where that is full, or nothing is written any more."""
        with self._change:
            why: Why | None = self._over
            if why is None and len(self._waiting) >= self.limits.queue:
                why = "queue"
            if why is None:
                self._waiting.append(ticket)
                self._change.notify()
        if why is not None:
            ticket.tell(Refused(why))

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request: nobody waits for it any more."""
        ticket.cancelled.set()
        with self._change:
            self._change.notify()

    def _work(self) -> None:
        try:
            while self._has_work():
                self._sweep()
                self._admit()
                for desk in self._desks.values():
                    self._guarded(desk, self._advance)
        except Exception:
            _log.exception("the engine has failed: no more replies are written")
        finally:
            with self._change:
                self._over = self._over or "broken"
            self._refuse_everybody()
            for desk in self._desks.values():
                desk.writers.clear()

    def _has_work(self) -> bool:
        """Wait until there is something to write; false once it is told to end."""
        with self._change:
            while self._over is None and not (self._waiting or self.writing):
                self._change.wait()
            return self._over is None

    def _refuse_everybody(self) -> None:
        """Tell all who are still here that it is over; in any thread."""
        with self._change:
            tickets = [*self._waiting, *([self._begun] if self._begun else [])]
            self._waiting.clear()
        for desk in self._desks.values():
            tickets += [writer.ticket for writer in list(desk.writers.values())]
        for ticket in tickets:
            ticket.tell(Refused(self._over or "broken"))
            ticket.cancelled.set()

    def _sweep(self) -> None:
        """Let go of those who hung up, and of those whose time is over."""
        now = monotonic()
        with self._change:
            over = [ticket for ticket in self._waiting if ticket.cancelled.is_set() or ticket.deadline < now]
            for ticket in over:
                self._waiting.remove(ticket)
        for ticket in over:
            _tell_late(ticket)
        for desk in self._desks.values():
            self._guarded(desk, partial(self._sweep_desk, now=now))

    @staticmethod
    def _sweep_desk(desk: Desk, now: float) -> None:
        for row, writer in list(desk.writers.items()):
            if writer.ticket.cancelled.is_set() or writer.ticket.deadline < now:
                del desk.writers[row]
                _tell_late(writer.ticket)
                desk.decoder.drop(row)

    def _admit(self) -> None:
        """Give places to those who wait; one at a time where others would wait for their next token meanwhile."""
        while True:
            with self._change:
                ticket = next((one for one in self._waiting if self._has_place(one)), None)
                if ticket is None:
                    return
                self._waiting.remove(ticket)
                self._begun = ticket
            busy = self.writing > 0
            self._guarded(self._desks[ticket.served.name], partial(self._begin, ticket=ticket))
            self._begun = None
            if busy:
                return

    def _has_place(self, ticket: Ticket) -> bool:
        desk = self._desks[ticket.served.name]
        return len(desk.writers) < self.limits.rows and desk.reserved + ticket.room <= self.limits.cache_tokens

    def _begin(self, desk: Desk, ticket: Ticket) -> None:
        row: Row | None = None
        why: Why | None = None
        try:
            writer = Writer(ticket, ReplyText(ticket.served.chat, ticket.stops), Sampler(ticket.sampling))
            if not desk.served.together:
                write_single(writer)
                return
            row, logits = desk.decoder.read(ticket.ids)
            if writer.take(writer.sampler.choose(logits)):
                desk.writers[row] = writer
                return
        except Exception as error:  # whatever a model raises: the others' replies go on
            why = _why(error)
            _log.warning("a prompt of %d tokens could not be answered", len(ticket.ids), exc_info=error)
        if why is not None:
            ticket.tell(Refused(why))
        if row is not None:
            desk.decoder.drop(row)
        if why == "memory":
            free_memory()  # not in the handler: until it ends, the error holds the tensors

    def _advance(self, desk: Desk) -> None:
        """Write one token of every row."""
        if not desk.writers:
            return
        for row, logits in self._write(desk, {row: one.text.tokens[-1] for row, one in desk.writers.items()}).items():
            writer = desk.writers[row]
            try:
                goes_on = writer.take(writer.sampler.choose(logits))
            except Exception as error:
                _log.warning("a token could not be chosen", exc_info=error)
                writer.ticket.tell(Refused(_why(error)))
                goes_on = False
            if not goes_on:
                del desk.writers[row]
                desk.decoder.drop(row)

    def _write(self, desk: Desk, newest: dict[Row, int]) -> "dict[Row, Tensor]":
        """Return what follows on each row. Where a pass fails, it is done half by half: who fails alone is refused."""
        try:
            return desk.decoder.write(newest)
        except Exception as error:
            why = _why(error)
            alone = len(newest) == 1
            _log.warning("a pass of %d rows failed: %s", len(newest), error, exc_info=error if alone else None)
        if why == "memory":
            free_memory()
        rows = list(newest)
        if alone:
            desk.writers.pop(rows[0]).ticket.tell(Refused(why))
            desk.decoder.drop(rows[0])
            return {}
        half = len(rows) // 2
        first = self._write(desk, {row: newest[row] for row in rows[:half]})
        return first | self._write(desk, {row: newest[row] for row in rows[half:]})

    def _guarded(self, desk: Desk, work: Callable[[Desk], None]) -> None:
        """Do it; should that fail, its rows are lost, and the engine goes on with a fresh decoder."""
        try:
            work(desk)
            return
        except Exception as error:
            _log.exception("writing with %s failed", desk.served.name)
            why = _why(error)
        for writer in desk.writers.values():
            writer.ticket.tell(Refused(why))
        desk.writers.clear()
        if self._begun is not None:
            self._begun.tell(Refused(why))
        desk.decoder = Decoder(desk.served.model, self.limits.cache_tokens)
        free_memory()


def _why(error: Exception) -> Literal["memory", "broken"]:
    return "memory" if is_out_of_memory(error) else "broken"


def _tell_late(ticket: Ticket) -> None:
    if not ticket.cancelled.is_set():
        ticket.tell(Refused("timeout"))
