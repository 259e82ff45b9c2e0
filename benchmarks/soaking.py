"""Many clients for minutes, and what they must find; started by serving.py."""

import argparse
import random
import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import openai
from served import serving

from ftbench.results.store import read_run

TOLERATED = {"queue_full", "timeout"}
WARM_UP = 0.2
"""Share of a soak after which memory is counted from."""


def soak(runs: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Many clients for minutes: streams and whole replies, short and long, some of which hang up midway."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    memory: list[tuple[float, int]] = []
    with serving(runs) as server:
        end = time.monotonic() + 60 * args.minutes
        prompts = [item.prompt for folder in runs for item in read_run(folder).replies()]

        def work(number: int) -> None:
            draw = random.Random(number)
            client = server.client()
            while time.monotonic() < end:
                try:
                    counts[visit(client, draw, server.models, prompts)] += 1
                except openai.APIStatusError as error:
                    counts[f"{error.status_code} {error.code}"] += 1
                    if error.status_code not in (429, 503) or error.code not in TOLERATED:
                        faults.append(str(error)[:300])
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
            time.sleep(2)
        metrics = httpx.get(f"{server.address}/metrics").text
    growth = _growth(memory)
    written = sum(float(value) for value in re.findall(r'ftbench_tokens_total{kind="completion"[^}]*} (\S+)', metrics))
    idle = "\nftbench_writing 0.0\n" in metrics
    return {
        "minutes": args.minutes,
        "clients": args.clients,
        "outcomes": dict(counts),
        "faults": faults[:20],
        "tokens_written": written,
        "memory_growth": growth,
        "memory_peak": max(rss for _, rss in memory),
        "memory": [(round(when), rss) for when, rss in memory[:: max(1, len(memory) // 60)]],
        "ok": not faults and idle and growth <= 0.05,
    }


def visit(client: openai.OpenAI, draw: random.Random, models: list[str], prompts: list[str]) -> str:
    """Ask once, one way or another, check that what comes is well formed, and say what it was."""
    text = draw.choice(prompts)
    if draw.random() < 0.2:
        text = " ".join(draw.choices(prompts, k=draw.randint(5, 40)))
    messages: Any = [{"role": "user", "content": text}]
    wishes: Any = {"max_tokens": draw.choice([8, 32, 64, 128]), "temperature": draw.choice([0, 0.7, 1.3])}
    if draw.random() < 0.3:
        wishes["stop"] = draw.choice([[". "], ["the", "train"], ["\n"]])
    model = draw.choice(models)
    if draw.random() < 0.5:
        reply = client.chat.completions.create(model=model, messages=messages, **wishes)
        assert reply.choices[0].finish_reason in ("stop", "length")
        assert reply.choices[0].message.content is not None
        assert reply.usage
        assert 0 < reply.usage.completion_tokens <= wishes["max_tokens"]
        return "whole"
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, stream_options=options, **wishes
    )
    leave = draw.randint(1, 20) if draw.random() < 0.3 else None
    chunks: list[Any] = []
    for chunk in stream:
        chunks.append(chunk)
        if len(chunks) == leave:
            stream.close()
            return "hung up"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert chunks[-1].usage
    assert 0 < chunks[-1].usage.completion_tokens <= wishes["max_tokens"]
    return "stream"


def _growth(memory: list[tuple[float, int]]) -> float:
    """Return by what share the resident memory grew from after the warm-up to the end, medians of a tenth each."""
    after = [rss for when, rss in memory if when >= WARM_UP * memory[-1][0]]
    part = max(1, len(after) // 10)
    first, last = (sorted(some)[len(some) // 2] for some in (after[:part], after[-part:]))
    return last / first - 1
