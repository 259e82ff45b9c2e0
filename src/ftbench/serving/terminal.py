"""A conversation without a server: one reply at a time, piece by piece."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

from ftbench.errors import FtbenchError
from ftbench.models.chat import Turn
from ftbench.serving.engine import Engine
from ftbench.serving.faults import REFUSALS
from ftbench.serving.limits import Limits
from ftbench.serving.sampling import Sampling
from ftbench.serving.served import Served
from ftbench.serving.ticket import Event, Piece, Refused, Ticket


@dataclass(frozen=True)
class Wishes:
    """How replies are made."""

    sampling: Sampling
    max_tokens: int
    system: str | None = None


@dataclass
class Talk:
    """What was said with one model, and the engine that writes what it says next."""

    served: Served
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._engine = Engine([self.served], Limits(cache_tokens=2**31, seconds=float("inf")))
        self._engine.start()

    @property
    def name(self) -> str:
        """What it is called."""
        return self.served.name

    def ask(self, text: str, wishes: Wishes) -> Iterator[str]:
        """Yield the reply in pieces.

        Raises:
            FtbenchError: the conversation has become too long, or the reply could not be written.
        """
        before = [Turn("system", wishes.system)] if wishes.system else []
        turns = [*self.turns, Turn("user", text)]
        ids = self.served.chat.conversation_ids([*before, *turns])
        room = min(wishes.max_tokens, self.served.context - len(ids))
        if room < 1:
            raise FtbenchError(
                f"the conversation has {len(ids):,} tokens, and {self.name} attends to {self.served.context:,}; "
                "/new begins another"
            )
        events: SimpleQueue[Event] = SimpleQueue()
        ticket = Ticket(self.served, ids, room, wishes.sampling, events.put)
        self._engine.submit(ticket)
        reply = ""
        try:
            while isinstance(event := events.get(), Piece):
                reply += event.text
                yield event.text
        finally:
            self._engine.cancel(ticket)
        if isinstance(event, Refused):
            raise FtbenchError(REFUSALS[event.why][1])
        self.turns = [*turns, Turn("assistant", reply)]
