"""The web server's part: connections that nobody may keep for ever, and an end that everybody is told of."""

import asyncio
import socket
from functools import partial
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ftbench.serving.engine import Engine
from ftbench.serving.limits import Limits

_TELL_SECONDS = 3
"""In which refusals and the ends of streams go out, once the engine has ended."""


class Connection(H11Protocol):
    """Ends where a request's head does not arrive, or a client does not read what it asked for."""

    def __init__(self, *given: Any, limits: Limits, **named: Any) -> None:
        super().__init__(*given, **named)
        self._seconds = limits.body_seconds
        self._ends: dict[str, asyncio.TimerHandle] = {}

    def _end_unless(self, what: str) -> None:
        """Break off in a while unless that has happened by then."""
        if what not in self._ends:
            self._ends[what] = self.loop.call_later(self._seconds, self.transport.abort)

    def _happened(self, what: str) -> None:
        if end := self._ends.pop(what, None):
            end.cancel()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request's head."""
        super().connection_made(transport)
        self._end_unless("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        for what in list(self._ends):
            self._happened(what)

    def data_received(self, data: bytes) -> None:
        """Take in what has come; a head that has begun has to go on."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._end_unless("head")
        else:
            self._happened("head")

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._end_unless("read")

    def resume_writing(self) -> None:
        """It reads."""
        super().resume_writing()
        self._happened("read")

    def on_response_complete(self) -> None:
        """Wait for the next request, or close, and then not for ever for a client that does not read."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_unless("close")

    def timeout_keep_alive_handler(self) -> None:
        """Close where no next request comes, in the same way."""
        super().timeout_keep_alive_handler()
        self._end_unless("close")


class Server(uvicorn.Server):
    """Ends with its engine: replies have so many seconds more, then their clients are told that it is going down.

    uvicorn itself would break off what is unfinished, and answer in plain text.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, limits: Limits, seconds: float) -> None:
        config.http = partial(Connection, limits=limits)  # type: ignore[assignment]
        config.timeout_graceful_shutdown = round(seconds) + _TELL_SECONDS
        super().__init__(config)
        self._engine, self._seconds = engine, seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        last = asyncio.create_task(self._refuse_late())
        try:
            await super().shutdown(sockets)
        finally:
            last.cancel()

    async def _refuse_late(self) -> None:
        await asyncio.sleep(self._seconds)
        await asyncio.to_thread(self._engine.stop, 1.0)
