"""What every request passes before a page or the endpoint sees it, and every response afterwards."""

import asyncio
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ftbench.serving.faults import Fault, refusal
from ftbench.serving.limits import Limits

LOOPBACK = ("localhost", "127.0.0.1", "::1")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

_OPEN = ("/", "/healthz")
"""What needs no key: the page itself asks for it."""


class Guard:
    """Asks for the key, where there is one, and sets the headers that browsers go by.

    Without a key only requests that name this machine as their host are answered: a web page elsewhere whose name has
    been pointed here (DNS rebinding) names another.
    """

    def __init__(self, app: ASGIApp, key: str | None, limits: Limits) -> None:
        self._app, self._key, self._limits = app, key, limits
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        fault = self._fault(scope["path"], Headers(scope=scope))
        self._inside += 1
        try:
            await (fault.response() if fault else self._app)(scope, receive, guarded)
        except asyncio.CancelledError:  # the web server ends, and this request has not ended in time
            if not begun:
                await refusal("stopping").response()(scope, receive, guarded)
        finally:
            self._inside -= 1

    def _fault(self, path: str, headers: Headers) -> Fault | None:
        if self._inside >= self._limits.requests:
            return Fault(503, "too many requests at once; try again in a moment", "overloaded")
        if self._key is None:
            if _host(headers.get("host", "")) in LOOPBACK:
                return None
            return Fault(403, "without an API key only this machine is answered", "wrong_host")
        given = headers.get("authorization", "")
        scheme, _, key = given.partition(" ")
        right = scheme.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key.encode())
        if right or path in _OPEN:
            return None
        return Fault(401, "the API key is missing or wrong; send 'Authorization: Bearer KEY'", "invalid_api_key")


def _host(header: str) -> str | None:
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


async def read_body(request: Request, limits: Limits) -> bytes:
    """Read a JSON request's body.

    Raises:
        Fault: it is not JSON by its type, too long, or too slow.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # also what keeps other sites' forms from asking in a visitor's name
        raise Fault(415, "send the body as Content-Type: application/json", "unsupported_media_type")
    too_long = Fault(413, f"the body is longer than {limits.body_bytes:,} bytes", "body_too_large")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > limits.body_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise too_long
    except TimeoutError as error:
        raise Fault(408, f"the body did not arrive within {limits.body_seconds:g} s", "body_timeout") from error
    except ClientDisconnect as error:
        raise Fault(400, "the connection ended before the body did", "disconnected") from error
    return bytes(body)
