"""What a server's answer to a request that nobody should send must be, and must not tell."""

import json
import re
import sys
from pathlib import Path

import httpx
from hostile import Hostile
from served import BUSY

LEAK = re.compile(r"/(?:work|root|tmp|home|usr|var|opt)/|Traceback|site-packages|\.py\b|safetensors|\b[Uu]vicorn")
ENDS = ("stop", "length")
GUARDS = ("x-content-type-options", "content-security-policy", "referrer-policy")
"""Headers that every response has."""
BUSY_STATUSES = (429, 503)


def leaks_of(run: Path) -> re.Pattern[str]:
    """What no response may tell: what LEAK has, and where this run, this Python and this program are."""
    run = run.resolve()
    places = {run, *run.parents, Path(sys.prefix), Path(sys.base_prefix), Path.cwd(), Path.home()} - {Path("/")}
    return re.compile("|".join([LEAK.pattern, *(rf"{re.escape(str(place))}(?![\w-])" for place in sorted(places))]))


def fault_of(hostile: Hostile, response: httpx.Response, leak: re.Pattern[str] = LEAK) -> str | None:
    """Say what is wrong with a response, if anything is."""
    text, status = response.text, response.status_code
    headers = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
    if leak.search(headers):
        return f"its headers tell too much: {headers[:300]}"
    if not hostile.page and leak.search(text):
        return f"it tells too much: {text[:300]}"
    if status == 400 and "Invalid HTTP request" in text:  # not HTTP, and so answered by uvicorn
        return None if hostile.kind in ("path", "headers") else "it was HTTP"
    missing = [name for name in GUARDS if name not in response.headers]
    if missing:
        return f"it has no header {missing[0]}"
    if hostile.method == "HEAD":  # no body
        return None if status in hostile.warranted else _unwarranted(hostile)
    if status < 400:
        return _unwarranted(hostile) if status not in hostile.warranted else _unlike_a_reply(hostile, response)
    try:
        error = response.json()["error"]
        shaped = set(error) == {"message", "type", "param", "code"}
    except (ValueError, KeyError, TypeError):
        shaped = False
    if not shaped:
        return f"not OpenAI's error shape: {text[:300]}"
    if status in BUSY_STATUSES and error["code"] in BUSY:
        return None
    if status >= 500:
        return f"the server failed: {text[:300]}"
    return None if status in hostile.warranted else f"{_unwarranted(hostile)}: {text[:300]}"


def _unwarranted(hostile: Hostile) -> str:
    return f"where {' or '.join(map(str, sorted(hostile.warranted)))} would be right"


def _unlike_a_reply(hostile: Hostile, response: httpx.Response) -> str | None:
    """Say what a body with 200 has that a page, a reply or a stream has not."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    if hostile.page:
        return None if kind == "text/html" else f"a page of type {kind!r}"
    try:
        if kind == "text/event-stream":
            return _unlike_a_stream(response.text)
        reply = response.json()
        (choice,) = reply["choices"]
        right = (
            reply["object"] == "chat.completion"
            and isinstance(choice["message"]["content"], str)
            and choice["finish_reason"] in ENDS
            and reply["usage"]["completion_tokens"] > 0
            and reply["model"] == json.loads(hostile.body)["model"]
        )
    except (ValueError, KeyError, TypeError):
        right = False
    return None if right else f"no reply: {response.text[:300]}"


def _unlike_a_stream(text: str) -> str | None:
    *lines, last = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    chunks = [json.loads(line) for line in lines]
    if last != "[DONE]":
        return f"the stream's end is missing: {text[-300:]}"
    if "error" in chunks[-1]:
        return None if chunks[-1]["error"]["code"] in BUSY else f"the stream ended with {lines[-1]}"
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    return None if len(reasons) == 1 and reasons[0] in ENDS else f"the stream ended by {reasons}"
