"""What `ftbench plan` takes itself: seconds and memory, by the model's size and the number of algorithms.

python benchmarks/plans.py                  about five minutes, alone on the machine

Each plan is a process of its own, three times; the models are configurations without weights. The result is added to
benchmarks/plans/cpu.jsonl.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

HERE = Path(__file__).parent
CASES = [
    ("llama-0.1b", "4GiB", ["full"]),
    ("llama-0.1b", "4GiB", ["lora"]),
    ("llama-0.1b", "300MiB", ["lora"]),
    ("llama-0.1b", "4GiB", ["all"]),
    ("llama-8b", "80GiB", ["full"]),
    ("llama-8b", "24GiB", ["full"]),
    ("llama-8b", "24GiB", ["lora"]),
    ("llama-8b", "24GiB", ["dpo"]),
    ("llama-8b", "24GiB", ["all"]),
    ("llama-70b", "80GiB", ["lora"]),
]
TIMES = 3


def main() -> None:
    """Time every case, and print it."""
    path = HERE / "plans" / "cpu.jsonl"
    path.parent.mkdir(exist_ok=True)
    for model, budget, algorithms in CASES:
        asked = [part for name in algorithms for part in ("--algo", name)]
        arguments = ["plan", "--model", str(HERE / "configs" / model), "--memory-budget", budget, *asked]
        found = [_once(arguments) for _ in range(TIMES)]
        row = {
            "model": model,
            "budget": budget,
            "algorithms": algorithms,
            "seconds": [round(seconds, 2) for seconds, _ in found],
            "median_seconds": round(median(seconds for seconds, _ in found), 2),
            "resident_bytes": max(resident for _, resident in found),
        }
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{model:10} {budget:>6} {','.join(algorithms):5} {row['median_seconds']:6.2f} s  "
              f"{row['resident_bytes'] / 2**20:5.0f} MiB", flush=True)  # fmt: skip


def _once(arguments: list[str]) -> tuple[float, int]:
    """Return the seconds of one command and its highest resident memory, bytes."""
    start = perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "ftbench", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    return perf_counter() - start, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
