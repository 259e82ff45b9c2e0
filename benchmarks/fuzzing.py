"""Requests that nobody should send, sent to a server; started by serving.py."""

import argparse
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from answers import BUSY_STATUSES, LEAK, fault_of, leaks_of
from hostile import KINDS, Hostile, request
from served import ask, serving

from ftbench.serving.limits import Limits

GOOD = "What is tea?"
MOST = 0.8
"""Share of requests that must have an answer other than that the server is busy."""


def fuzz(runs: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Send requests that nobody should send; then let schemathesis do so by the OpenAPI page."""
    statuses: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    leak = leaks_of(runs[0])
    # a connection for each request: one that the server closed after a malformed request must not cost the next
    fresh = httpx.Limits(max_keepalive_connections=0)
    with serving(runs[:1], "--timeout", "20", "--max-reply", "64") as server:
        model = server.models[0]
        before = ask(server.client(), model, GOOD, max_tokens=32)
        with httpx.Client(base_url=server.address, timeout=60, limits=fresh) as client:

            def send(number: int) -> None:
                draw = random.Random(f"{args.seed} {number}")
                outcome = None
                while outcome is None:  # what the client itself refuses to send is no request: draw another
                    hostile = request(draw, model)
                    outcome, fault = attempt(client, hostile, leak)
                    statuses[hostile.kind, outcome or "not sent, drawn again"] += 1
                if fault:
                    faults.append(fault)

            with ThreadPoolExecutor(8) as pool:
                list(pool.map(send, range(args.requests)))
        done = _schemathesis(server.address, args.seed)
        alive = server.process.is_running() and httpx.get(f"{server.address}/healthz").status_code == 200
        after = ask(server.client(), model, GOOD, max_tokens=32) if alive else None
    lines = [line.strip() for line in done.stdout.splitlines() if "generated" in line or "passed" in line]
    if done.returncode:
        faults.append(f"schemathesis: {done.stdout[-3000:]}")
    lacking = lacks(statuses)
    if after != before:
        lacking.append(f"a good request was answered with {before} before, and {after} after")
    counts: dict[str, dict[str, int]] = {}
    for (kind, outcome), count in sorted(statuses.items()):
        counts.setdefault(kind, {})[outcome] = count
    return {
        "requests": args.requests,
        "statuses": counts,
        "schemathesis": lines[-6:],
        "faults": faults[:20],
        "lacking": lacking,
        "ok": not faults and not lacking,
    }


def lacks(statuses: Counter[tuple[str, str]]) -> list[str]:
    """Say what must have been answered at least once, and was not."""
    lacking = []
    answered: Counter[str] = Counter()
    for (kind, outcome), count in statuses.items():
        if outcome.isdecimal() and int(outcome) not in BUSY_STATUSES:
            answered[kind] += count
    lacking += [f"no {kind!r} was answered" for kind in KINDS if not answered[kind]]
    if answered.total() < MOST * statuses.total():
        lacking.append(f"{answered.total()} of {statuses.total()} requests were answered")
    for kind, outcome in (("oversized", "413"), ("nasty text", "200"), ("headers", "200"), ("headers", "403")):
        if not statuses[kind, outcome]:
            lacking.append(f"no {kind!r} was answered with {outcome}")
    return lacking


def attempt(client: httpx.Client, hostile: Hostile, leak: re.Pattern[str] = LEAK) -> tuple[str | None, str | None]:
    """Send a request; return what came of it, None where it could not be sent, and what is wrong with that, if so."""
    try:
        made = client.build_request(hostile.method, hostile.path, headers=hostile.headers, content=hostile.body)
    except (httpx.InvalidURL, ValueError):
        return None, None
    try:
        response = client.send(made)
    except httpx.LocalProtocolError:
        return None, None
    except httpx.HTTPError as error:
        name = type(error).__name__
        # a body that is too long need not be read to its end
        early = isinstance(error, httpx.WriteError | httpx.ReadError) and len(hostile.body) > Limits().body_bytes
        return name, None if early else f"{hostile}: {error!r}"
    wrong = fault_of(hostile, response, leak)
    return str(response.status_code), f"{hostile}: {response.status_code}, {wrong}" if wrong else None


def _schemathesis(address: str, seed: int) -> "subprocess.CompletedProcess[str]":
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "run", f"{address}/openapi.json", "--max-examples", "60", "--request-timeout", "60"]
    checks = "not_a_server_error,response_schema_conformance,content_type_conformance"
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [*command, "--checks", checks, "--seed", str(seed)],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
