"""A request for a reply on its way through the engine, and what is told of it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ftbench.models.decoding import ROOM
from ftbench.serving.sampling import Sampler, Sampling
from ftbench.serving.served import Served
from ftbench.serving.writing import ReplyText

Reason = Literal["stop", "length"]
Why = Literal["queue", "timeout", "memory", "stopping", "broken"]


@dataclass(frozen=True)
class Piece:
    """Some more of a reply's text."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The end of a reply: why, and its tokens, the end token counted."""

    reason: Reason
    tokens: int


@dataclass(frozen=True)
class Refused:
    """No reply, or no more of it."""

    why: Why


Event = Piece | Finished | Refused


@dataclass(eq=False)
class Ticket:
    """A request for a reply.

    `tell` may be called in any thread, in the end with `Finished` or `Refused`; what follows on that means nothing.
    """

    served: Served
    ids: list[int]
    max_tokens: int
    sampling: Sampling
    tell: Callable[[Event], None]
    stops: Sequence[str] = ()
    deadline: float = float("inf")
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def room(self) -> int:
        """Tokens that keys and values may be kept of, at most."""
        return -(-(len(self.ids) + self.max_tokens) // ROOM) * ROOM


@dataclass(eq=False)
class Writer:
    """A reply that is being written."""

    ticket: Ticket
    text: ReplyText
    sampler: Sampler

    def take(self, token: int) -> bool:
        """Take the next token in and tell of it; return whether the reply goes on."""
        ticket = self.ticket
        piece = self.text.add(token)
        ended = token == ticket.served.chat.end or self.text.stopped
        full = len(self.text.tokens) >= ticket.max_tokens
        if ended or full:
            piece += self.text.finish()
        if piece:
            ticket.tell(Piece(piece))
        if ended or full:
            ticket.tell(Finished("stop" if ended else "length", len(self.text.tokens)))
        return not (ended or full)
