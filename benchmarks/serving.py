"""Asks a server what it must stand: the recorded replies, many clients, hang-ups, hostile requests.

python benchmarks/serving.py equality RUN [RUN...]     every recorded reply: asked alone, by 16 at once, streamed
python benchmarks/serving.py throughput RUN            tokens a second of one client and of eight
python benchmarks/serving.py soak RUN [RUN...]         15 minutes, 16 clients, streams, hang-ups
python benchmarks/serving.py fuzz RUN                  2,000 hostile requests, and schemathesis beside

Each starts `ftbench serve` in a process of its own and puts one JSON line into benchmarks/serving/KIND.jsonl. RUN is a
run's folder. It exits with 1 where something was not as it must be.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from fuzzing import fuzz
from origin import machine, now
from served import Told, ask, serving
from soaking import soak

from ftbench.results.store import read_run

HERE = Path(__file__).parent
ENOUGH = 64
"""Replies of a run that are the fewest to say something of it."""


def equality(runs: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Ask every prompt that a run's evaluation asked: alone, by many clients at once, and as streams at once."""
    found: dict[str, dict[str, int]] = {}
    with serving(runs) as server:
        client = server.client()
        for name, folder in zip(server.models, runs, strict=True):
            run = read_run(folder)
            recorded = run.replies()
            limit = run.result.recipe.max_new_tokens

            def same(item: Any, streamed: bool = False, model: str = name, limit: int = limit) -> bool:
                told = ask(client, model, item.prompt, streamed, max_tokens=limit)
                return bool(told == Told(item.reply, item.tokens, "stop" if item.ended else "length"))

            alone = sum(map(same, recorded))
            with ThreadPoolExecutor(args.clients) as pool:
                together = sum(pool.map(same, recorded))
                streamed = sum(pool.map(partial(same, streamed=True), recorded))
            found[name] = {"replies": len(recorded), "alone": alone, "together": together, "streamed": streamed}
    return {"clients": args.clients, "equal": found, "ok": all_equal(found)}


def all_equal(found: dict[str, dict[str, int]]) -> bool:
    """Say whether every run had replies enough, and each was the recorded one, however it was asked for."""
    return bool(found) and all(
        one["replies"] >= ENOUGH and all(one[how] == one["replies"] for how in ("alone", "together", "streamed"))
        for one in found.values()
    )


def throughput(runs: list[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of one client and of eight, each asking for replies of one length again and again."""
    prompts = [item.prompt for item in read_run(runs[0]).replies()]
    found: dict[int, list[float]] = {1: [], 8: []}
    with serving(runs[:1]) as server:
        client, model = server.client(), server.models[0]

        def tokens(prompt: str) -> int:
            messages: Any = [{"role": "user", "content": prompt}]
            wishes: Any = {"temperature": 1.5, "seed": 1, "max_tokens": 64}  # long replies, the same in every round
            reply = client.chat.completions.create(model=model, messages=messages, **wishes)
            assert reply.usage
            return int(reply.usage.completion_tokens)

        for prompt in prompts[:8]:
            tokens(prompt)
        for _ in range(args.rounds):
            for clients, rates in found.items():
                began = time.perf_counter()
                with ThreadPoolExecutor(clients) as pool:
                    made = sum(pool.map(tokens, prompts[: 4 * clients]))
                rates.append(made / (time.perf_counter() - began))
    one, eight = (sorted(rates)[len(rates) // 2] for rates in found.values())
    return {
        "tokens_per_second_1": one,
        "tokens_per_second_8": eight,
        "ratio": eight / one,
        "rounds": found,
        "ok": eight >= 3 * one,
    }


KINDS = {"equality": equality, "throughput": throughput, "soak": soak, "fuzz": fuzz}


def main() -> None:
    """Do one, and put its line beside the earlier ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", action="store_true", help="print the line, do not record it")
    args = parser.parse_args()
    found = KINDS[args.kind](args.runs, args)

    line = {"when": now(), "runs": [folder.name for folder in args.runs], **found, "environment": machine("cpu")}
    print(json.dumps({key: line[key] for key in line if key not in ("environment", "memory")}, indent=2))
    if not args.trial:
        folder = HERE / "serving"
        folder.mkdir(exist_ok=True)
        with (folder / f"{args.kind}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    sys.exit(0 if found["ok"] else 1)


if __name__ == "__main__":
    main()
