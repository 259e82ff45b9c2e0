"""What a benchmark of five algorithms and three seeds takes, against the same fifteen runs made one by one.

python benchmarks/together.py                     with the recipe `quick`; about an hour on two cores
python benchmarks/together.py --tokens 10000      shorter trainings; what else is given goes to `ftbench run`, too
python benchmarks/together.py --at-once 2         the benchmark makes two runs at once, each with half of the cores

One by one, each run is a command of its own with an empty folder of runs and an empty cache: it evaluates the untouched
model, reads and judges the data and finds its references itself. The model's files are there beforehand. The benchmark
is run when half of the others are done, so that a machine that grows slower slows both. A line a command is added to
benchmarks/together/DEVICE.jsonl; what is there of this machine is not run again. It exits with 1 where the benchmark
takes more than 0.7 of the sum.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from origin import machine, now, rows_of

from ftbench.models.resolve import resolve_model
from ftbench.recipe import read_recipe

HERE = Path(__file__).parent
ALGORITHMS = ("full", "lora", "dpo", "orpo", "simpo")
SEEDS = 3
MOST = 0.7
"""Share of the sum that a benchmark should take at most."""


def main() -> None:
    """Time what is not there yet, and print the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", help="a folder; by default the recipe's")
    parser.add_argument("--at-once", type=int, default=1, help="how many runs the benchmark makes at once")
    given, more = parser.parse_known_args()
    model = given.model or str(resolve_model(read_recipe("quick").model, None).folder)
    path = HERE / "together" / f"{given.device}.jsonl"
    path.parent.mkdir(exist_ok=True)
    where = machine(given.device)
    known = {json.dumps(row["case"]): row["seconds"] for row in rows_of(path, where)}
    cases = _cases(given.at_once, {"model": Path(model).name, "settings": more})
    for case in cases:
        if json.dumps(case) in known:
            continue
        seconds = _seconds(case, ["--device", given.device, "--model", model, *more])
        known[json.dumps(case)] = seconds
        with path.open("a") as file:
            row = {"case": case, "when": now(), "seconds": round(seconds, 1), "environment": where}
            file.write(json.dumps(row) + "\n")
        named = ", ".join(case["algorithms"])
        print(f"{named}, {case['seeds']} seeds from {case['seed']}: {seconds:.0f} s", flush=True)
    together, alone = (
        sum(known[json.dumps(case)] for case in cases if (len(case["algorithms"]) > 1) is several)
        for several in (True, False)
    )
    print(f"together {together:.0f} s, one by one {alone:.0f} s: {together / alone:.2f} of it")
    sys.exit(1 if together / alone > MOST else 0)


def _cases(at_once: int, shared: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is run, in its order."""
    alone = [
        {"algorithms": [algorithm], "seed": seed, "seeds": 1, "at_once": 1}
        for seed, algorithm in product(range(SEEDS), ALGORITHMS)
    ]
    together = {"algorithms": list(ALGORITHMS), "seed": 0, "seeds": SEEDS, "at_once": at_once}
    half = len(alone) // 2
    return [{**case, **shared} for case in (*alone[:half], together, *alone[half:])]


def _seconds(case: dict[str, Any], settings: list[str]) -> float:
    """Run algorithms with nothing that was there before but the model, and return what it took."""
    asked = [part for name in case["algorithms"] for part in ("--algo", name)]
    asked += [part for name in ("seed", "seeds") for part in (f"--{name}", str(case[name]))]
    if case["at_once"] > 1:
        asked += ["--jobs", str(case["at_once"])]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ftbench", "run", "--out", f"{folder}/runs", *asked, *settings]
        environment = {**os.environ, "FTBENCH_CACHE": f"{folder}/cache"}
        start = perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            sys.exit(f"{' '.join(asked)} ended with {done.returncode}: {done.stderr[-300:]}")
        return perf_counter() - start


if __name__ == "__main__":
    main()
