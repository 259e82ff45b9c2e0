"""A server in a process of its own, and its replies, for what asks it; see serving.py."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

BUSY = frozenset({"queue_full", "timeout", "overloaded"})
"""Codes of the refusals that a busy server may give; any other with 5xx is a fault of its own."""


@dataclass(frozen=True)
class Told:
    """What a client was told of a reply."""

    text: str
    tokens: int
    reason: str


def whole(reply: Any) -> Told:
    """Read a reply in one piece; it must be well formed."""
    (choice,) = reply.choices
    assert choice.finish_reason in ("stop", "length"), f"it ended by {choice.finish_reason!r}"
    assert isinstance(choice.message.content, str), "it has no text"
    assert reply.usage, "no usage is told"
    return Told(choice.message.content, reply.usage.completion_tokens, choice.finish_reason)


def joined(chunks: Iterable[Any]) -> Told:
    """Read a stream that was asked for its usage; it must be well formed, and end once."""
    pieces: list[str] = []
    reasons: list[str] = []
    tokens = None
    for chunk in chunks:
        assert tokens is None, "something comes after the usage"
        if not chunk.choices:
            assert chunk.usage, "no usage is told"
            tokens = chunk.usage.completion_tokens
            continue
        (choice,) = chunk.choices
        assert not reasons, "something comes after its end"
        pieces.append(choice.delta.content or "")
        if choice.finish_reason is not None:
            reasons.append(choice.finish_reason)
    assert len(reasons) == 1, f"it ended {len(reasons)} times"
    assert reasons[0] in ("stop", "length"), f"it ended by {reasons[0]!r}"
    assert tokens is not None, "no usage is told"
    return Told("".join(pieces), tokens, reasons[0])


def ask(client: Any, model: str, prompt: str, streamed: bool = False, **wishes: Any) -> Told:
    """Ask once, for a reply in one piece or for a stream."""
    messages = [{"role": "user", "content": prompt}]
    create = client.chat.completions.create
    if not streamed:
        return whole(create(model=model, messages=messages, **wishes))
    options = {"include_usage": True}
    return joined(create(model=model, messages=messages, stream=True, stream_options=options, **wishes))


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    process: psutil.Process
    address: str
    models: list[str]

    def client(self) -> openai.OpenAI:
        """OpenAI's own client of it."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=300)


@contextmanager
def serving(runs: list[Path], *options: str) -> Iterator[Server]:
    """Serve runs on a free port; the server must end by itself when it is told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ftbench", "serve", *map(str, runs), "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        address = f"http://127.0.0.1:{port}"
        log: list[str] = []
        assert process.stderr
        threading.Thread(target=lambda lines=process.stderr: log.extend(lines), daemon=True).start()
        try:
            while process.poll() is None:
                try:
                    httpx.get(f"{address}/healthz").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            else:
                sys.exit("".join(log))
            listed = httpx.get(f"{address}/v1/models").json()["data"]
            yield Server(psutil.Process(process.pid), address, [model["id"] for model in listed])
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    if code:
        sys.exit(f"the server ended with {code}: {''.join(log)}")
