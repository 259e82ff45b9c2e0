"""The engine by itself: whatever fails, everyone who waits is told, and who can be answered is."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from ftbench.evaluation.generation import generate_replies
from ftbench.serving.engine import Engine
from ftbench.serving.limits import Limits
from ftbench.serving.sampling import Sampler, Sampling
from ftbench.serving.served import Served
from ftbench.serving.ticket import Event, Finished, Piece, Refused, Ticket
from serving import LIMITS, serve_tiny

Told = SimpleQueue[Event]


@pytest.fixture(scope="module")
def served(tiny_llama: Path) -> Served:
    return serve_tiny(tiny_llama, "base")


@contextmanager
def running(served: Served, limits: Limits = LIMITS) -> Iterator[Engine]:
    engine = Engine([served], limits)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def ask(engine: Engine, served: Served, text: str, tokens: int = 24, **sampling: Any) -> Told:
    told: Told = SimpleQueue()
    engine.submit(Ticket(served, served.chat.prompt_ids(text), tokens, Sampling(**sampling), told.put))
    return told


def read(told: Told) -> tuple[str, Event]:
    """The text of a reply, and how it ended."""
    text = ""
    while isinstance(event := told.get(timeout=20), Piece):
        text += event.text
    return text, event


def right(served: Served, text: str, tokens: int = 24) -> str:
    return generate_replies(served.model, served.chat, [text], tokens, 1, lambda _: None)[0].text


def held_is_given_back(engine: Engine) -> bool:
    for _ in range(100):
        if engine.held_tokens == engine.writing == 0:
            return True
        time.sleep(0.02)
    return False


@contextmanager
def before_each_pass(served: Served, do: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    hook = served.model.register_forward_pre_hook(lambda _, __, given: do(given), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def test_a_row_whose_pass_fails_is_refused_alone(served: Served) -> None:
    long, short = "Which of all of these is it, and why should that be so?", ["hi", "Tell me", "why?"]
    end = len(served.chat.prompt_ids(long)) + 5  # where the long one's sixth token stands; the others end before
    assert all(len(served.chat.prompt_ids(text)) + 12 < end for text in short)

    def fail(given: dict[str, Any]) -> None:
        if end in given["position_ids"]:
            raise RuntimeError("index out of range")

    texts = [right(served, text, 12) for text in short]
    with running(served) as engine, before_each_pass(served, fail):
        bad = ask(engine, served, long)
        good = [ask(engine, served, text, 12) for text in short]
        assert read(bad)[1] == Refused("broken")
        assert [read(one) for one in good] == [(text, Finished("length", 12)) for text in texts]
        assert held_is_given_back(engine)


def test_rows_that_memory_is_too_small_for_together_are_written_in_parts(served: Served) -> None:
    texts = ["hi", "Tell me", "why?"]
    failed = []

    def fail(given: dict[str, Any]) -> None:
        positions = given["position_ids"][0].tolist()
        if len(positions) > 1 and positions[:2] != [0, 1]:  # not a prompt
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")

    with running(served) as engine, before_each_pass(served, fail):
        told = [ask(engine, served, text, 8) for text in texts]
        assert [read(one)[0] for one in told] == [right(served, text, 8) for text in texts]
    assert failed


def test_a_later_choice_that_fails_costs_that_reply_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = Sampler.choose, []

    def choose(self: Sampler, logits: Any) -> int:
        if self.sampling.seed == 13:
            seen.append(1)
            if len(seen) == 4:
                raise RuntimeError("probability tensor contains nan")
        return whole(self, logits)

    monkeypatch.setattr(Sampler, "choose", choose)
    with running(served) as engine:
        good = ask(engine, served, "hi")
        bad = ask(engine, served, "Tell me more", seed=13)
        text, end = read(bad)
        assert text
        assert end == Refused("broken")
        assert read(good)[0] == right(served, "hi")
        assert held_is_given_back(engine)


def test_who_cannot_even_be_begun_is_told(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(self: Sampler, sampling: Sampling) -> None:
        raise OverflowError("a seed that no generator takes")

    with running(served) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(Sampler, "__init__", make)
            assert read(ask(engine, served, "hi"))[1] == Refused("broken")
        assert read(ask(engine, served, "hi"))[0] == right(served, "hi")


def test_an_engine_that_fails_tells_everyone_and_takes_nobody_more(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()

    def fail(self: Engine) -> None:
        if go.is_set():
            raise RuntimeError("a defect of ours")

    with running(served, replace(LIMITS, rows=1)) as engine:
        monkeypatch.setattr(Engine, "_sweep", fail)
        with before_each_pass(served, lambda _: time.sleep(0.02)):
            told = [ask(engine, served, "hi", 64) for _ in range(3)]
            assert isinstance(told[0].get(timeout=20), Piece)
            go.set()
            assert [read(one)[1] for one in told] == [Refused("broken")] * 3
        engine._thread.join(10)
        assert engine.over == "broken"
        assert read(ask(engine, served, "hi"))[1] == Refused("broken")


def test_letting_go_that_fails_costs_that_models_rows_and_no_more(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(served) as engine:
        with monkeypatch.context() as patch, before_each_pass(served, lambda _: time.sleep(0.02)):
            patch.setattr("ftbench.models.decoding.Decoder.drop", lambda *_: 1 / 0)
            told: Told = SimpleQueue()
            ticket = Ticket(served, served.chat.prompt_ids("hi"), 64, Sampling(), told.put)
            engine.submit(ticket)
            other = ask(engine, served, "why?", 64)
            assert isinstance(told.get(timeout=20), Piece)
            assert isinstance(other.get(timeout=20), Piece)
            engine.cancel(ticket)
            assert read(other)[1] == Refused("broken")
        assert read(ask(engine, served, "hi"))[0] == right(served, "hi")


def test_the_end_is_told_even_while_a_pass_goes_on(served: Served) -> None:
    inside, on = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        inside.set()
        on.wait(20)

    with running(served, replace(LIMITS, rows=1)) as engine, before_each_pass(served, wait):
        told = [ask(engine, served, "hi") for _ in range(2)]
        assert inside.wait(10)
        engine.stop(0.1)
        assert [read(one)[1] for one in told] == [Refused("stopping")] * 2
        on.set()


def test_memory_that_is_held_keeps_the_limit(served: Served) -> None:
    limits = replace(LIMITS, rows=12, queue=64, cache_tokens=12 * 64)
    most = 0

    def look(_: Any) -> None:
        nonlocal most
        most = max(most, engine.held_tokens)

    with running(served, limits) as engine, before_each_pass(served, look):
        told = [ask(engine, served, "x" * (7 * index % 60), 1 + 5 * index % 40) for index in range(40)]
        assert all(isinstance(read(one)[1], Finished) for one in told)
        assert held_is_given_back(engine)
    assert 6 * 64 <= most <= limits.cache_tokens


@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-39, 1e-30, 1e-6])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_tiny_temperature_is_as_good_as_none(temperature: float, top_p: float) -> None:
    logits = torch.tensor([0.5, 3.0, -2.0, 2.9, -torch.inf])
    assert Sampler(Sampling(temperature, top_p, 1)).choose(logits) == 1
