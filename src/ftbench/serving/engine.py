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
from typing import Literal

from ftbench.memory.fit import free_memory, is_out_of_memory
from ftbench.models.decoding import Decoder, Row
from ftbench.serving.limits import Limits
from ftbench.serving.sampling import Sampler
from ftbench.serving.served import Served
from ftbench.serving.single import write_single
from ftbench.serving.ticket import Refused, Ticket, Writer
from ftbench.serving.writing import ReplyText

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
        self._desks = {served.name: Desk(served, Decoder(served.model)) for served in models}
        self._waiting: deque[Ticket] = deque()
        self._change = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> None:
        """End; what is unfinished is refused."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether it can write."""
        return self._thread.is_alive() and not self._stopping

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
        """Put a request into the queue; it is refused at once where that is full."""
        with self._change:
            if not self._stopping and len(self._waiting) < self.limits.queue:
                self._waiting.append(ticket)
                self._change.notify()
                return
        ticket.tell(Refused("stopping" if self._stopping else "queue"))

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request: nobody waits for it any more."""
        ticket.cancelled.set()
        with self._change:
            self._change.notify()

    def _work(self) -> None:
        while True:
            with self._change:
                while not (self._stopping or self._waiting or self.writing):
                    self._change.wait()
                if self._stopping:
                    break
            self._sweep()
            self._admit()
            for desk in self._desks.values():
                self._guarded(desk, self._advance)
        for desk in self._desks.values():
            self._refuse_all(desk, "stopping")
        while self._waiting:
            self._waiting.popleft().tell(Refused("stopping"))

    def _sweep(self) -> None:
        """Let go of those who hung up, and of those whose time is over."""
        now = monotonic()
        with self._change:
            over = [ticket for ticket in self._waiting if ticket.cancelled.is_set() or ticket.deadline < now]
            for ticket in over:
                self._waiting.remove(ticket)
        for desk in self._desks.values():
            for row, writer in list(desk.writers.items()):
                if writer.ticket.cancelled.is_set() or writer.ticket.deadline < now:
                    del desk.writers[row]
                    desk.decoder.drop(row)
                    over.append(writer.ticket)
        for ticket in over:
            if not ticket.cancelled.is_set():
                ticket.tell(Refused("timeout"))

    def _admit(self) -> None:
        """Give places to those who wait; one at a time where others would wait for their next token meanwhile."""
        while True:
            with self._change:
                ticket = next((one for one in self._waiting if self._has_place(one)), None)
                if ticket is None:
                    return
                self._waiting.remove(ticket)
            busy = self.writing > 0
            self._guarded(self._desks[ticket.served.name], partial(self._begin, ticket=ticket))
            if busy:
                return

    def _has_place(self, ticket: Ticket) -> bool:
        desk = self._desks[ticket.served.name]
        return len(desk.writers) < self.limits.rows and desk.reserved + ticket.room <= self.limits.cache_tokens

    def _begin(self, desk: Desk, ticket: Ticket) -> None:
        writer = Writer(ticket, ReplyText(ticket.served.chat, ticket.stops), Sampler(ticket.sampling))
        row: Row | None = None
        try:
            if not desk.served.together:
                write_single(writer)
                return
            row, logits = desk.decoder.read(ticket.ids)
            goes_on = writer.take(writer.sampler.choose(logits))
        except Exception as error:  # whatever a model raises: the others' replies go on
            _log.warning("a prompt of %d tokens could not be answered: %s", len(ticket.ids), type(error).__name__)
            ticket.tell(Refused("memory" if is_out_of_memory(error) else "broken"))
            goes_on = False
        if row is not None and goes_on:
            desk.writers[row] = writer
        elif row is not None:
            desk.decoder.drop(row)

    def _advance(self, desk: Desk) -> None:
        """Write one token of every row."""
        if not desk.writers:
            return
        newest = {row: writer.text.tokens[-1] for row, writer in desk.writers.items()}
        for row, logits in desk.decoder.write(newest).items():
            writer = desk.writers[row]
            if not writer.take(writer.sampler.choose(logits)):
                del desk.writers[row]
                desk.decoder.drop(row)

    def _guarded(self, desk: Desk, work: Callable[[Desk], None]) -> None:
        """Do it; should that fail, its rows are lost, and the engine goes on with a fresh decoder."""
        try:
            work(desk)
        except Exception as error:
            _log.exception("writing with %s failed", desk.served.name)
            why: Literal["memory", "broken"] = "memory" if is_out_of_memory(error) else "broken"
            self._refuse_all(desk, why)
            desk.decoder = Decoder(desk.served.model)
            free_memory()

    @staticmethod
    def _refuse_all(desk: Desk, why: Literal["memory", "broken", "stopping"]) -> None:
        for writer in desk.writers.values():
            writer.ticket.tell(Refused(why))
        desk.writers.clear()
