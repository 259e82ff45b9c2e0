"""From a chat request to a reply, whole or streamed."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, time
from typing import Any
from uuid import uuid4

from ftbench.errors import FtbenchError
from ftbench.models.decoding import ROOM
from ftbench.serving.asked import ChatRequest
from ftbench.serving.engine import Engine
from ftbench.serving.faults import Fault, refusal
from ftbench.serving.limits import Limits
from ftbench.serving.metrics import Metrics
from ftbench.serving.sampling import Sampling
from ftbench.serving.served import Served
from ftbench.serving.ticket import Event, Finished, Piece, Refused, Ticket

_GRACE = 10.0
"""Seconds after a reply's time is over in which the engine has to say so: a pass in between may be long."""


@dataclass(frozen=True)
class Plan:
    """A request that was found to be one that can be answered."""

    served: Served
    asked: ChatRequest
    ids: list[int]
    max_tokens: int


def plan_reply(asked: ChatRequest, models: dict[str, Served], limits: Limits) -> Plan:
    """Look a request's model up and write its conversation as tokens.

    Raises:
        Fault: no such model, or it asks for more than there is.
    """
    served = models.get(asked.model)
    if served is None:
        raise Fault(404, "there is no such model here; see /v1/models", "model_not_found", "model")
    if len(asked.messages) > limits.messages:
        raise Fault(400, f"more than {limits.messages} messages", "too_many_messages", "messages")
    if asked.messages[-1].role != "user":
        raise Fault(400, "the last message must be the user's", "no_user_message", "messages")
    if len(asked.stops) > 4:
        raise Fault(400, "at most four stop strings", "too_many_stops", "stop")
    if asked.wanted is not None and asked.wanted > limits.reply_tokens:
        raise Fault(400, f"a reply may have {limits.reply_tokens:,} tokens at most", "reply_too_long", "max_tokens")
    try:
        ids = served.chat.conversation_ids([message.turn for message in asked.messages])
    except FtbenchError as error:
        raise Fault(400, str(error), "conversation_not_taken", "messages") from error
    # whole rooms: that is what the engine gives places by
    most = min(served.context, limits.cache_tokens // ROOM * ROOM)
    room = most - len(ids)
    wanted = asked.wanted if asked.wanted is not None else min(limits.reply_tokens, max(room, 1))
    if len(ids) > limits.prompt_tokens or wanted > room:
        raise Fault(
            400,
            f"the conversation has {len(ids):,} tokens and the reply may have {wanted:,}; there is room for "
            f"{most:,} together, {limits.prompt_tokens:,} of them before the reply",
            "context_length_exceeded",
            "messages",
        )
    return Plan(served, asked, ids, wanted)


class Reply:
    """A reply on its way; `arrived` is when its request did, by the monotonic clock."""

    def __init__(self, plan: Plan, engine: Engine, metrics: Metrics, limits: Limits, arrived: float) -> None:
        self.plan = plan
        self._engine, self._metrics = engine, metrics
        self._began = arrived
        self._created = int(time())
        self._id = f"chatcmpl-{uuid4().hex}"
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        asked = plan.asked
        sampling = Sampling(asked.temperature or 0.0, 1.0 if asked.top_p is None else asked.top_p, asked.seed)
        self._ticket = Ticket(
            plan.served, plan.ids, plan.max_tokens, sampling, self._tell, asked.stops, self._began + limits.seconds
        )
        self._over = False
        self._read = False  # its prompt, by the model

    def _tell(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def begin(self) -> None:
        """Hand the request to the engine."""
        self._engine.submit(self._ticket)

    async def next(self) -> Event:
        """Return what is told next; should the engine never tell, the request is refused all the same."""
        left = self._ticket.deadline + _GRACE - monotonic()
        event: Event
        try:
            event = await asyncio.wait_for(self._events.get(), max(0.0, left))
        except TimeoutError:
            self._engine.cancel(self._ticket)
            event = Refused("timeout")
        if not self._read and not isinstance(event, Refused):
            self._read = True
            self._metrics.first.labels(self.plan.served.name).observe(monotonic() - self._began)
        if isinstance(event, Finished):
            self._count("ok", event.tokens)
        elif isinstance(event, Refused):
            self._count(event.why, 0)
        return event

    def end(self) -> None:
        """Give it up, unless it is finished: the client has gone."""
        if not self._over:
            self._engine.cancel(self._ticket)
            self._count("hung up", 0)

    def _count(self, outcome: str, tokens: int) -> None:
        self._over = True
        name = self.plan.served.name
        self._metrics.requests.labels(name, outcome).inc()
        self._metrics.tokens.labels(name, "prompt").inc(len(self.plan.ids) if self._read else 0)
        self._metrics.tokens.labels(name, "completion").inc(tokens)
        if outcome == "ok":
            self._metrics.whole.labels(name).observe(monotonic() - self._began)

    def whole(self, text: str, end: Finished) -> dict[str, Any]:
        """Return the body of a reply in one piece."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": end.reason,
        }
        return {**self._frame("chat.completion"), "choices": [choice], "usage": self._usage(end.tokens)}

    async def stream(self, first: Event) -> AsyncIterator[bytes]:
        """Yield server-sent events, the last of them [DONE]; a reply that breaks off ends with an error's body."""
        options = self.plan.asked.stream_options
        usage = bool(options and options.include_usage)
        beside: dict[str, Any] = {"usage": None} if usage else {}
        yield self._chunk({"role": "assistant", "content": ""}, None, beside)
        event = first
        while isinstance(event, Piece):
            yield self._chunk({"content": event.text}, None, beside)
            event = await self.next()
        if isinstance(event, Refused):
            yield _line(refusal(event.why).body)
        else:
            yield self._chunk({}, event.reason, beside)
            if usage:
                yield _line({**self._frame("chat.completion.chunk"), "choices": [], "usage": self._usage(event.tokens)})
        yield b"data: [DONE]\n\n"

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.plan.served.name}

    def _usage(self, tokens: int) -> dict[str, int]:
        prompt = len(self.plan.ids)
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}

    def _chunk(self, delta: dict[str, Any], reason: str | None, beside: dict[str, Any]) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _line({**self._frame("chat.completion.chunk"), "choices": [choice], **beside})


def _line(body: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()
