"""What a client is told when there is no reply: always OpenAI's error shape."""

from typing import Any

from fastapi.responses import JSONResponse


class Fault(Exception):  # noqa: N818  most are the client's
    """A request that is not answered; `status` is HTTP's."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The same as a response."""
        headers = {}
        if self.status in (429, 503):
            headers["Retry-After"] = "2"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


REFUSALS = {
    "queue": (429, "too many requests are waiting; try again in a moment", "queue_full"),
    "timeout": (503, "the reply was not finished in time; ask for fewer tokens, or try again", "timeout"),
    "memory": (503, "there was no memory for this reply; ask for less, or try again", "out_of_memory"),
    "stopping": (503, "the server is going down", "stopping"),
    "broken": (503, "the reply could not be written; the server's log says why", "broken"),
}

OF_STATUS = {
    400: ("the request cannot be read", "bad_request"),
    404: ("there is nothing here; see /v1/models and /v1/chat/completions", "not_found"),
    405: ("this method is not allowed here", "method_not_allowed"),
}


def refusal(why: str) -> Fault:
    """Return what a refused ticket's client is told."""
    return Fault(*REFUSALS[why])


def of_status(status: int) -> Fault:
    """Return what is said where the web framework knows only a status."""
    message, code = OF_STATUS.get(status, ("the request was not answered", "error"))
    return Fault(status, message, code)
