"""What the long checks of the server take for a fault, and what they let pass; the checks are in benchmarks/."""

import json
import random
import sys
from argparse import Namespace
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from ftbench.serving.limits import Limits
from made_module import load
from serving import serve_tiny, server

ROOT = Path(__file__).parents[1]

FIELDS: dict[str, Any] = {"message": "x", "type": "server_error", "param": None}
# The client has a copy of httpx of its own; nothing looks at which it is.
ASKED: Any = httpx.Request("POST", "http://127.0.0.1/v1/chat/completions")


def answer(status: int) -> Any:
    return httpx.Response(status, request=ASKED)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _benchmark("hostile", monkeypatch)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _benchmark("answers", monkeypatch)


@pytest.fixture
def fuzzing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _benchmark("fuzzing", monkeypatch)


@pytest.fixture
def soaking(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _benchmark("soaking", monkeypatch)


def _benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module(name)


def told(code: str) -> dict[str, Any]:
    return {"error": {**FIELDS, "code": code}}


# Hostile requests


def asked(hostile: ModuleType, *statuses: int, kind: str = "nasty text", body: bytes = b'{"model": "base"}') -> Any:
    json_type = {"Content-Type": "application/json"}
    return hostile.Hostile(kind, "POST", "/v1/chat/completions", json_type, body, frozenset(statuses))


def answered(status: int, content: Any, **headers: str) -> httpx.Response:
    """A response with the headers that every response has; a text is a stream."""
    guards = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "x", "Referrer-Policy": "x", **headers}
    if isinstance(content, str):
        return httpx.Response(status, text=content, headers={**guards, "Content-Type": "text/event-stream"})
    return httpx.Response(status, json=content, headers=guards)


def reply(**fields: Any) -> dict[str, Any]:
    choice = {"message": {"content": "It is."}, "finish_reason": "stop"}
    usage = {"completion_tokens": 2}
    return {"object": "chat.completion", "model": "base", "choices": [choice], "usage": usage, **fields}


def stream(*reasons: str | None, end: str = "[DONE]") -> str:
    chunks: list[dict[str, Any]] = [{"choices": [{"delta": {}, "finish_reason": reason}]} for reason in reasons]
    return "".join(f"data: {line}\n\n" for line in [*map(json.dumps, chunks), end])


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (answered(200, reply()), None),
        (answered(200, reply(choices=[])), "no reply"),
        (answered(200, reply(model="another")), "no reply"),
        (answered(200, reply(usage={"completion_tokens": 0})), "no reply"),
        (answered(200, {}), "no reply"),
        (answered(200, stream(None, "length")), None),
        (answered(200, stream(None, "stop", "stop")), "the stream ended by"),
        (answered(200, stream(None)), "the stream ended by"),
        (answered(200, stream(None, "stop", end="{}")), "the stream's end is missing"),
        (answered(200, stream(None, end=json.dumps(told("timeout"))) + "data: [DONE]\n\n"), None),
        (answered(200, stream(None, end=json.dumps(told("broken"))) + "data: [DONE]\n\n"), "the stream ended with"),
        (answered(503, told("queue_full")), None),
        (answered(503, told("broken")), "the server failed"),
        (answered(503, told("stopping")), "the server failed"),
        (answered(500, told("timeout")), "the server failed"),
        (answered(400, told("invalid_value")), None),
        (answered(404, told("model_not_found")), "where 200 or 400 would be right"),
        (answered(404, {"detail": "an error"}), "not OpenAI's error shape"),
        (httpx.Response(400, json=told("x")), "no header x-content-type-options"),
        (httpx.Response(400, text="Invalid HTTP request received."), "it was HTTP"),
        (answered(400, {"error": {**FIELDS, "code": "x", "message": "/root/a is missing"}}), "it tells too much"),
        (answered(400, told("x"), Server="uvicorn"), "its headers tell too much"),
    ],
)
def test_a_response_is_a_fault_where_the_server_failed(
    answers: ModuleType, hostile: ModuleType, response: httpx.Response, fault: str | None
) -> None:
    found = answers.fault_of(asked(hostile, 200, 400), response)
    assert found is None if fault is None else fault in found


def test_a_bad_model_is_never_answered(answers: ModuleType, hostile: ModuleType) -> None:
    seen = 0
    for number in range(400):
        made = hostile.request(random.Random(number), "base")
        if made.kind == "field model":
            seen += 1
            assert answers.fault_of(made, answered(200, reply(model=json.loads(made.body)["model"])))
            assert len(made.body) > 256_000 or not answers.fault_of(made, answered(404, told("model_not_found")))
    assert seen > 2


def test_where_the_server_lies_is_a_leak(answers: ModuleType, hostile: ModuleType, tmp_path: Path) -> None:
    leak = answers.leaks_of(tmp_path / "runs" / "lora-s0-1")
    for place in (tmp_path / "runs" / "lora-s0-1", tmp_path / "runs", sys.prefix, Path.home()):
        body = {"error": {**FIELDS, "code": "x", "message": f"no {place}"}}
        assert "too much" in answers.fault_of(asked(hostile, 400), answered(400, body), leak)
    assert answers.fault_of(asked(hostile, 400), answered(400, told("x"), Location=f"{tmp_path}/runs"), leak)
    assert answers.fault_of(asked(hostile, 400), answered(400, told("x")), leak) is None


def test_hostile_requests_of_every_kind_must_be_answered(fuzzing: ModuleType, hostile: ModuleType) -> None:
    good = Counter({(kind, "400"): 10 for kind in hostile.KINDS})
    good.update({("oversized", "413"): 1, ("nasty text", "200"): 1, ("headers", "200"): 1, ("headers", "403"): 1})
    assert fuzzing.lacks(good) == []
    assert fuzzing.lacks(good + Counter({("path", "503"): 20, ("path", "429"): 20})) == []
    for kind, outcome in (("oversized", "413"), ("nasty text", "200"), ("headers", "403")):
        without = Counter({key: count for key, count in good.items() if key != (kind, outcome)})
        assert fuzzing.lacks(without) == [f"no {kind!r} was answered with {outcome}"]
    busy = Counter({(kind, "503"): 10 for kind in hostile.KINDS})
    assert len(fuzzing.lacks(busy)) == len(hostile.KINDS) + 5
    broken = good + Counter({("oversized", "ReadError"): 100})
    assert fuzzing.lacks(broken) == [f"{good.total()} of {broken.total()} requests were answered"]


@pytest.mark.parametrize(
    ("error", "size", "outcome", "faulty"),
    [
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), 10, "RemoteProtocolError", True),
        (httpx.RemoteProtocolError("Server disconnected"), 300_000, "RemoteProtocolError", True),
        (httpx.ReadTimeout("slow"), 10, "ReadTimeout", True),
        (httpx.ReadTimeout("slow"), 300_000, "ReadTimeout", True),
        (httpx.ReadError("reset"), 10, "ReadError", True),
        (httpx.ReadError("reset"), 300_000, "ReadError", False),
        (httpx.LocalProtocolError("a header's value"), 10, None, False),
    ],
)
def test_a_connection_that_breaks_is_a_fault_unless_the_body_was_too_long(
    fuzzing: ModuleType, hostile: ModuleType, error: Exception, size: int, outcome: str | None, faulty: bool
) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    with httpx.Client(base_url="http://127.0.0.1", transport=httpx.MockTransport(fail)) as client:
        found, fault = fuzzing.attempt(client, asked(hostile, 400, body=b"x" * size))
    assert (found, fault is not None) == (outcome, faulty)


def test_every_drawn_request_is_sent_or_told_to_be_none(fuzzing: ModuleType, hostile: ModuleType) -> None:
    with httpx.Client(
        base_url="http://127.0.0.1", transport=httpx.MockTransport(lambda _: answered(400, told("x")))
    ) as client:
        draw = random.Random(1)
        found = [fuzzing.attempt(client, hostile.request(draw, "base"))[0] for _ in range(300)]
        unsent = replace(asked(hostile, 400), path="/\x00")
        assert fuzzing.attempt(client, unsent) == (None, None)
    assert set(found) == {"400"}


def test_a_real_server_stands_hostile_requests(
    answers: ModuleType, fuzzing: ModuleType, hostile: ModuleType, tiny_llama: Path
) -> None:
    statuses: Counter[tuple[str, str]] = Counter()
    faults = []
    with (
        server([serve_tiny(tiny_llama, "base")], Limits(reply_tokens=16)) as address,
        httpx.Client(base_url=address, limits=httpx.Limits(max_keepalive_connections=0)) as client,
    ):
        for number in range(300):
            made = hostile.request(random.Random(f"1 {number}"), "base")
            outcome, fault = fuzzing.attempt(client, made, answers.leaks_of(tiny_llama))
            statuses[made.kind, outcome or "not sent"] += 1
            faults += [fault] if fault else []
    assert not faults
    assert fuzzing.lacks(statuses) == []


# The soak


def chunk(text: str | None = None, reason: str | None = None, tokens: int | None = None) -> Any:
    choice = SimpleNamespace(delta=SimpleNamespace(content=text), finish_reason=reason)
    usage = None if tokens is None else SimpleNamespace(completion_tokens=tokens)
    return SimpleNamespace(choices=[] if usage else [choice], usage=usage)


class Answering:
    """A client whose server says `text` whatever it is asked, whole or streamed."""

    def __init__(self, text: str, reasons: tuple[str, ...] = ("stop",)) -> None:
        self.text, self.reasons = text, reasons
        self.chat = SimpleNamespace(completions=self)

    def create(self, *, stream: bool = False, **_: Any) -> Any:
        if stream:
            ends = [chunk(reason=reason) for reason in self.reasons]
            return Chunks([chunk(""), chunk(self.text), *ends, chunk(tokens=3)])
        message = SimpleNamespace(content=self.text)
        choice = SimpleNamespace(message=message, finish_reason=self.reasons[-1] if self.reasons else None)
        return SimpleNamespace(choices=[choice], usage=SimpleNamespace(completion_tokens=3))


class Chunks(list[Any]):
    """A stream, that is also closed."""

    def __enter__(self) -> "Chunks":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def visits(soaking: ModuleType, client: Answering, *, expected: str = "tea", count: int = 200) -> Counter[str]:
    references = {("base", "hi", 8): soaking.Told(expected, 3, "stop")}
    found: Counter[str] = Counter()
    for number in range(count):
        try:
            found[soaking.visit(client, random.Random(number), ["base"], ["hi"], references)] += 1
        except AssertionError as error:
            found[str(error)] += 1
    return found


def test_every_kind_of_visit_happens_and_a_good_server_passes(soaking: ModuleType) -> None:
    assert set(visits(soaking, Answering("tea"))) == set(soaking.KINDS)


def test_a_reply_of_another_row_is_a_fault_of_the_soak(soaking: ModuleType) -> None:
    found = visits(soaking, Answering("tea"), expected="coffee")
    assert any("replied otherwise to 'hi'" in kind for kind in found)
    assert not found["whole as alone"] + found["stream as alone"]


def test_a_stop_string_in_the_text_is_a_fault_of_the_soak(soaking: ModuleType) -> None:
    assert any(kind.startswith("['train'] in") for kind in visits(soaking, Answering("a train")))


@pytest.mark.parametrize(("reasons", "said"), [(("stop", "stop"), "after its end"), ((), "ended 0 times")])
def test_a_stream_ends_once(soaking: ModuleType, reasons: tuple[str, ...], said: str) -> None:
    found = visits(soaking, Answering("tea", reasons))
    assert any(said in kind for kind in found)
    assert not found["stream"]


IDLE = {"ftbench_waiting": 0.0, "ftbench_writing": 0.0, "ftbench_cache_tokens": 0.0}
BUSY = {"ftbench_waiting": 0.0, "ftbench_writing": 2.0, "ftbench_cache_tokens": 512.0}


def test_what_a_soak_must_have_seen(soaking: ModuleType) -> None:
    good = Counter(dict.fromkeys(soaking.KINDS, 20))
    assert soaking.lacks(good, [IDLE, BUSY], IDLE, 0.01) == []
    for kind in soaking.KINDS:
        without = Counter({key: count for key, count in good.items() if key != kind})
        assert soaking.lacks(without, [BUSY], IDLE, 0.0) == [f"no {kind!r}"]
    busy = good + Counter({"429 queue_full": 60})
    assert soaking.lacks(busy, [BUSY], IDLE, 0.0) == ["100 of 160 requests were answered"]
    assert len(soaking.lacks(Counter({"429 queue_full": 60}), [BUSY], IDLE, 0.0)) == len(soaking.KINDS) + 1
    assert len(soaking.lacks(good, [IDLE], IDLE, 0.0)) == 2
    for name in soaking.GAUGES:
        assert soaking.lacks(good, [BUSY], {**IDLE, name: 3.0}, 0.0) == [f"{name} is 3 at the end"]
    assert soaking.lacks(good, [BUSY], IDLE, 0.06) == ["memory grew by 6.0%"]


def test_a_gauge_that_is_gone_is_an_error(soaking: ModuleType) -> None:
    page = "# HELP ftbench_waiting x\nftbench_waiting 1.0\nftbench_writing 2.0\nftbench_cache_tokens 64.0\n"
    assert soaking.gauges(page) == {"ftbench_waiting": 1, "ftbench_writing": 2, "ftbench_cache_tokens": 64}
    with pytest.raises(KeyError):
        soaking.gauges(page.replace("ftbench_cache_tokens", "ftbench_cache"))


@pytest.mark.parametrize(
    ("error", "tolerated"),
    [
        (openai.APIError("late", ASKED, body={**FIELDS, "code": "timeout"}), True),  # within a stream
        (openai.APIError("broken", ASKED, body={**FIELDS, "code": "broken"}), False),
        (openai.APITimeoutError(ASKED), False),
        (openai.APIConnectionError(request=ASKED), False),
        (openai.InternalServerError("", response=answer(503), body={"code": "timeout"}), True),
        (openai.InternalServerError("", response=answer(500), body={"code": "timeout"}), False),
        (openai.RateLimitError("", response=answer(429), body={"code": "queue_full"}), True),
    ],
)
def test_a_soak_tolerates_a_busy_server_alone(soaking: ModuleType, error: openai.APIError, tolerated: bool) -> None:
    assert soaking.busy(error) == tolerated
    assert soaking.told(error).endswith(f" {error.code}")


# Equality


def test_every_run_has_replies_enough_and_each_is_equal_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    all_equal = load(ROOT / "benchmarks" / "serving.py").all_equal
    good = {"replies": 64, "alone": 64, "together": 64, "streamed": 64}
    assert all_equal({"lora-s0-1": good, "lora-s1-2": good})
    for way in ("alone", "together", "streamed"):
        assert not all_equal({"lora-s0-1": {**good, way: 63}, "lora-s1-2": good})
    assert not all_equal({"base": dict.fromkeys(good, 63)})
    assert not all_equal({"base": dict.fromkeys(good, 0)})
    assert not all_equal({})


def test_two_runs_of_an_algorithm_are_both_held_against_their_records(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = load(ROOT / "benchmarks" / "serving.py")
    item = SimpleNamespace(prompt="hi", reply="tea", tokens=3, ended=True)
    recipe = SimpleNamespace(max_new_tokens=8, algorithm="lora")
    other = SimpleNamespace(prompt="hi", reply="coffee", tokens=3, ended=True)
    runs = {
        tmp_path / name: SimpleNamespace(result=SimpleNamespace(recipe=recipe), replies=lambda items=items: items)
        for name, items in (("one", [other] * 64), ("two", [item] * 64))
    }
    server = SimpleNamespace(models=["one", "two"], client=lambda: Answering("tea"))
    monkeypatch.setattr(module, "serving", lambda _: nullcontext(server))
    monkeypatch.setattr(module, "read_run", runs.__getitem__)
    found = module.equality(list(runs), Namespace(clients=2))
    assert not found["ok"]
    assert found["equal"]["one"] == {"replies": 64, "alone": 0, "together": 0, "streamed": 0}
    assert found["equal"]["two"] == {"replies": 64, "alone": 64, "together": 64, "streamed": 64}
