"""The web application: OpenAI's chat endpoint, the page, health and metrics."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from time import monotonic
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from ftbench.serving.asked import ChatRequest, first_fault, request_schema
from ftbench.serving.engine import Engine
from ftbench.serving.faults import Fault, of_status, refusal
from ftbench.serving.guarding import Guard, read_body
from ftbench.serving.limits import Limits
from ftbench.serving.metrics import Metrics
from ftbench.serving.page import page
from ftbench.serving.replying import Reply, plan_reply
from ftbench.serving.served import Served
from ftbench.serving.ticket import Finished, Piece, Refused

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": _ERROR}}
    return {status: {"description": "no reply", "content": content} for status in statuses}


_ALWAYS = (401, 403, 503)

_REPLY: dict[str, Any] = {
    "description": "The reply: in one piece, or as server-sent events where `stream` is true.",
    "content": {
        "application/json": {"schema": {"type": "object"}},
        "text/event-stream": {},
    },
}

_FIGURES: dict[str, Any] = {"description": "Figures.", "content": {"text/plain": {"schema": {"type": "string"}}}}


def build_app(models: Sequence[Served], limits: Limits, key: str | None = None) -> FastAPI:
    """Return the application; its engine runs while the application does.

    Args:
        models: what is served; their names differ.
        limits: what a client may ask for.
        key: the API key; with None only requests that name this machine as their host are answered.
    """
    by_name = {served.name: served for served in models}
    engine = Engine(models, limits)
    metrics = Metrics(engine)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(title="ftbench", lifespan=running, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.engine = engine
    app.add_middleware(Guard, key=key, limits=limits)
    _add_faults(app)
    _add_reading(app, by_name, engine, metrics, limits, key)
    schema, parts = request_schema()
    schema["properties"]["model"]["enum"] = list(by_name)
    body = {"required": True, "content": {"application/json": {"schema": schema}}}

    @app.post(
        "/v1/chat/completions",
        responses={200: _REPLY, **_faults(400, 404, 408, 413, 415, 429, *_ALWAYS)},
        openapi_extra={"requestBody": body},
        response_model=None,
        summary="Reply to a conversation",
    )
    async def chat(request: Request) -> Response:
        arrived = monotonic()
        try:
            asked = ChatRequest.model_validate_json(await read_body(request, limits))
        except ValidationError as error:
            message, param = first_fault(error)
            raise Fault(400, message, "invalid_value", param) from error
        # a long conversation takes a while to be cut into tokens: others go on meanwhile
        plan = await asyncio.to_thread(plan_reply, asked, by_name, limits)
        reply = Reply(plan, engine, metrics, limits, arrived)
        reply.begin()
        return await (_streamed if asked.stream else _whole)(reply, request)

    app.openapi().setdefault("components", {}).setdefault("schemas", {}).update(parts)
    return app


async def _streamed(reply: Reply, request: Request) -> Response:
    """Wait for the first piece, so that a refusal still has its status, and stream from there."""
    first = await _next_or_gone(reply, request)
    if isinstance(first, Refused):
        raise refusal(first.why)
    return _Stream(reply, first)


class _Stream(StreamingResponse):
    """A reply's stream. However it ends, even before it has begun, the reply is given up unless it is finished."""

    def __init__(self, reply: Reply, first: Piece | Finished) -> None:
        super().__init__(reply.stream(first), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._reply.end()


async def _whole(reply: Reply, request: Request) -> Response:
    pieces = []
    while isinstance(event := await _next_or_gone(reply, request), Piece):
        pieces.append(event.text)
    if isinstance(event, Refused):
        raise refusal(event.why)
    return JSONResponse(reply.whole("".join(pieces), event))


async def _next_or_gone(reply: Reply, request: Request) -> Piece | Finished | Refused:
    """Return what the engine tells next; give the reply up if the client hangs up before."""
    waiting = asyncio.ensure_future(reply.next())
    try:
        while True:
            done, _ = await asyncio.wait([waiting], timeout=0.5)
            if done:
                return waiting.result()
            if await request.is_disconnected():
                reply.end()
                raise Fault(400, "the client hung up", "disconnected")
    except asyncio.CancelledError:
        reply.end()
        raise
    finally:
        waiting.cancel()


def _add_faults(app: FastAPI) -> None:
    """Say everything that goes wrong in OpenAI's shape."""

    @app.exception_handler(Fault)
    async def _(_: Request, fault: Fault) -> Response:
        return fault.response()

    @app.exception_handler(HTTPException)
    async def _(_: Request, error: HTTPException) -> Response:
        response = of_status(error.status_code).response()
        if allowed := (error.headers or {}).get("Allow"):
            response.headers["Allow"] = allowed
        return response

    @app.exception_handler(Exception)
    async def _(_: Request, error: Exception) -> Response:
        return Fault(500, "the server failed; its log says how", "internal_error").response()


def _add_reading(
    app: FastAPI, models: dict[str, Served], engine: Engine, metrics: Metrics, limits: Limits, key: str | None
) -> None:
    """Add what is only read."""
    text, policy = page(limits, keyed=key is not None)
    listed = [_describe(served) for served in models.values()]

    @app.get("/", response_class=HTMLResponse, summary="The chat page", responses=_faults(*_ALWAYS))
    async def root() -> Response:
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/healthz", response_model=None, summary="Whether replies are written", responses=_faults(*_ALWAYS))
    async def healthz() -> Response:
        if engine.over is not None:
            raise refusal(engine.over)
        return JSONResponse({"status": "ok", "models": list(models)} if key is None else {"status": "ok"})

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        summary="Figures for Prometheus",
        responses={200: _FIGURES, **_faults(*_ALWAYS)},
    )
    async def metrics_page() -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", response_model=None, summary="What is served", responses=_faults(*_ALWAYS))
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": listed})

    @app.get("/v1/models/{model}", response_model=None, summary="One of them", responses=_faults(404, *_ALWAYS))
    async def one_model(model: str) -> Response:
        if model not in models:
            raise Fault(404, "there is no such model here; see /v1/models", "model_not_found", "model")
        return JSONResponse(_describe(models[model]))


def _describe(served: Served) -> dict[str, Any]:
    created = int(datetime.fromisoformat(served.run.result.started).timestamp())
    frame = {"id": served.name, "object": "model", "created": created, "owned_by": "ftbench"}
    return {**frame, "context_length": served.context, "ftbench": served.facts()}
