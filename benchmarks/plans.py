"""What `ftbench plan` takes itself: seconds and memory, by the model's size and the number of algorithms.

python benchmarks/plans.py                  about five minutes, alone on the machine

Each plan is a process of its own, three times, and before each the same libraries are imported by themselves, which no
plan can do without and which tells one machine from another. The models are configurations without weights. The result
is added to benchmarks/plans/cpu.jsonl, with when, where and of which code it is. It exits with 1 where a plan of one
algorithm takes longer than its model's limit, or more memory than any may.
"""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from origin import machine, now
from timed import once, python

HERE = Path(__file__).parent
CASES = [
    ("llama-0.1b", "4GiB", "bf16", ["full"]),
    ("llama-0.1b", "4GiB", "bf16", ["lora"]),
    ("llama-0.1b", "300MiB", "bf16", ["lora"]),
    ("llama-0.1b", "4GiB", "bf16", ["all"]),
    ("llama-8b", "80GiB", "bf16", ["full"]),
    ("llama-8b", "24GiB", "bf16", ["full"]),
    ("llama-8b", "24GiB", "bf16", ["lora"]),
    ("llama-8b", "24GiB", "bf16", ["dpo"]),
    ("llama-8b", "24GiB", "float32", ["dpo"]),  # loading alone does not fit
    ("llama-8b", "24GiB", "bf16", ["all"]),
    ("llama-70b", "80GiB", "bf16", ["lora"]),
]
TIMES = 3
LIMITS = {"llama-0.1b": 5.0, "llama-8b": 15.0}
"""Seconds that a plan of one algorithm may take."""
MOST = 2**30
"""Bytes that any plan may take itself."""
IMPORTS = "import torch; from transformers import LlamaForCausalLM"


def main() -> None:
    """Time every case, and print it."""
    where = machine("cpu")
    beyond = 0
    path = HERE / "plans" / "cpu.jsonl"
    path.parent.mkdir(exist_ok=True)
    for model, budget, precision, algorithms in CASES:
        asked = [part for name in algorithms for part in ("--algo", name)]
        arguments = ["plan", "--model", str(HERE / "configs" / model), "--memory-budget", budget, *asked]
        arguments += ["--set", f"precision={precision}"]
        imports, found = [], []
        for _ in range(TIMES):
            imports.append(python(["-c", IMPORTS])[0])
            found.append(once(arguments))
        limit = None if algorithms == ["all"] else LIMITS.get(model)
        row: dict[str, Any] = {
            "when": now(),
            "model": model,
            "budget": budget,
            "precision": precision,
            "algorithms": algorithms,
            "seconds": [round(seconds, 2) for seconds, _ in found],
            "median_seconds": round(median(seconds for seconds, _ in found), 2),
            "imports_seconds": [round(seconds, 2) for seconds in imports],
            "limit_seconds": limit,
            "resident_bytes": max(resident for _, resident in found),
            "environment": where,
        }
        over = row["resident_bytes"] > MOST or (limit is not None and row["median_seconds"] > limit)
        beyond += over
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{model:10} {budget:>6} {precision:7} {','.join(algorithms):5} {row['median_seconds']:6.2f} s, "
              f"{median(imports):.2f} s by imports alone  "
              f"{row['resident_bytes'] / 2**20:5.0f} MiB{'  too much' if over else ''}", flush=True)  # fmt: skip
    sys.exit(1 if beyond else 0)


if __name__ == "__main__":
    main()
