"""Many clients for minutes, and what they must find; started by serving.py."""

import argparse
import random
import re
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import openai
from served import BUSY, Server, Told, ask, joined, serving

from ftbench.results.store import read_run

WARM_UP = 0.2
"""Share of a soak after which memory is counted from."""
GROWTH = 0.05
"""By what share memory may grow from there."""
KINDS = ("whole", "stream", "whole as alone", "stream as alone", "hung up")
"""What a visit may come to, all of which must happen."""
MOST = 0.9
"""Share of requests that must be answered: there are fewer clients than places to wait in."""
GAUGES = ("ftbench_waiting", "ftbench_writing", "ftbench_cache_tokens")
"""What the server is busy with; nothing at the end."""
ALIVE = ("ftbench_writing", "ftbench_cache_tokens")
"""Those of them that must show something during the soak, or they would show nothing at its end either."""
REFERENCES = 8
"""Prompts whose greedy replies are asked for before."""
SETTLE_SECONDS = 60
References = dict[tuple[str, str, int], Told]
"""Greedy replies, by model, prompt and tokens."""


def soak(runs: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Many clients for minutes: streams and whole replies, short and long, some of which hang up midway."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    memory: list[tuple[float, int]] = []
    during: list[dict[str, float]] = []
    with serving(runs) as server:
        prompts = [item.prompt for folder in runs for item in read_run(folder).replies()]
        references = refer(server.client(), server.models, prompts)
        end = time.monotonic() + 60 * args.minutes

        def work(number: int) -> None:
            draw = random.Random(number)
            client = server.client()
            while time.monotonic() < end:
                try:
                    counts[visit(client, draw, server.models, prompts, references)] += 1
                except openai.APIError as error:
                    counts[told(error)] += 1
                    if not busy(error):
                        faults.append(repr(error)[:300])
                    time.sleep(0.2)
                except Exception as error:
                    counts[type(error).__name__] += 1
                    faults.append(repr(error)[:300])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(args.clients)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            memory.append((time.monotonic() - began, server.process.memory_info().rss))
            during.append(gauges(_metrics(server)))
            time.sleep(2)
        while any(gauges(_metrics(server)).values()) and time.monotonic() < end + SETTLE_SECONDS:
            time.sleep(0.5)  # who hung up last is let go of within a moment
        metrics = _metrics(server)
    growth = _growth(memory)
    written = sum(float(value) for value in re.findall(r'ftbench_tokens_total{kind="completion"[^}]*} (\S+)', metrics))
    lacking = lacks(counts, during, gauges(metrics), growth)
    return {
        "minutes": args.minutes,
        "clients": args.clients,
        "outcomes": dict(counts),
        "faults": faults[:20],
        "lacking": lacking,
        "tokens_written": written,
        "at_most": {name: max(one[name] for one in during) for name in GAUGES},
        "memory_growth": growth,
        "memory_peak": max(rss for _, rss in memory),
        "memory": [(round(when), rss) for when, rss in memory[:: max(1, len(memory) // 60)]],
        "ok": not faults and not lacking,
    }


def refer(client: Any, models: list[str], prompts: list[str]) -> References:
    """Ask each model some prompts greedily, one at a time: what must come again in the crowd."""
    asked = [(model, prompt, tokens) for model in models for prompt in prompts[:REFERENCES] for tokens in (8, 64)]
    return {one: ask(client, one[0], one[1], temperature=0, max_tokens=one[2]) for one in asked}


def gauges(metrics: str) -> dict[str, float]:
    """Read what the server is busy with, of Prometheus' page; a gauge that is missing is an error."""
    found = dict(re.findall(r"^(ftbench_\w+) (\S+)$", metrics, re.MULTILINE))
    return {name: float(found[name]) for name in GAUGES}


def lacks(counts: Counter[str], during: list[dict[str, float]], after: dict[str, float], growth: float) -> list[str]:
    """Say what must have been, and was not."""
    answered = sum(counts[kind] for kind in KINDS)
    lacking = [f"no {kind!r}" for kind in KINDS if not counts[kind]]
    if answered < MOST * counts.total():
        lacking.append(f"{answered} of {counts.total()} requests were answered")
    lacking += [f"{name} was never above 0" for name in ALIVE if not any(one[name] for one in during)]
    lacking += [f"{name} is {value:g} at the end" for name, value in after.items() if value]
    if growth > GROWTH:
        lacking.append(f"memory grew by {growth:.1%}")
    return lacking


def _metrics(server: Server) -> str:
    return httpx.get(f"{server.address}/metrics", timeout=60).raise_for_status().text


def busy(error: openai.APIError) -> bool:
    """Say whether the server only had no time or place: before a reply with 429 or 503, or within a stream."""
    if isinstance(error, openai.APIStatusError) and error.status_code not in (429, 503):
        return False
    return error.code in BUSY


def told(error: openai.APIError) -> str:
    """Return what an error counts as."""
    status = error.status_code if isinstance(error, openai.APIStatusError) else type(error).__name__
    return f"{status} {error.code}"


def visit(client: Any, draw: random.Random, models: list[str], prompts: list[str], references: References) -> str:
    """Ask once, one way or another, check what comes, and say what it was."""
    streamed = draw.random() < 0.5
    if draw.random() < 0.25:
        (model, prompt, tokens), expected = draw.choice(list(references.items()))
        found = ask(client, model, prompt, streamed, temperature=0, max_tokens=tokens)
        assert found == expected, f"{model} replied otherwise to {prompt!r}: {found}, and alone {expected}"
        return "stream as alone" if streamed else "whole as alone"
    text = draw.choice(prompts)
    if draw.random() < 0.2:
        text = " ".join(draw.choices(prompts, k=draw.randint(5, 40)))
    wishes: Any = {"max_tokens": draw.choice([8, 32, 64, 128]), "temperature": draw.choice([0, 0.7, 1.3])}
    if draw.random() < 0.3:
        wishes["stop"] = draw.choice([[". "], ["the", "train"], ["\n"]])
    model = draw.choice(models)
    leave = draw.randint(1, 20) if streamed and draw.random() < 0.3 else None
    if leave is None:
        found = ask(client, model, text, streamed, **wishes)
    else:
        messages: Any = [{"role": "user", "content": text}]
        options: Any = {"stream": True, "stream_options": {"include_usage": True}}
        with client.chat.completions.create(model=model, messages=messages, **options, **wishes) as stream:
            chunks = list(islice(stream, leave))
        if len(chunks) == leave:
            return "hung up"
        found = joined(chunks)
    assert 0 < found.tokens <= wishes["max_tokens"], f"{found.tokens} tokens of {wishes['max_tokens']}"
    left = [stop for stop in wishes.get("stop", []) if stop in found.text]
    assert not left, f"{left} in {found.text!r}"
    return "stream" if streamed else "whole"


def _growth(memory: list[tuple[float, int]]) -> float:
    """Return by what share the resident memory grew from after the warm-up to the end, medians of a tenth each."""
    after = [rss for when, rss in memory if when >= WARM_UP * memory[-1][0]]
    part = max(1, len(after) // 10)
    first, last = (sorted(some)[len(some) // 2] for some in (after[:part], after[-part:]))
    return last / first - 1
