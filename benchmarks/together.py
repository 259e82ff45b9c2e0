"""What a benchmark of five algorithms and three seeds takes, against the same fifteen runs made one by one.

python benchmarks/together.py                     with the recipe `quick`; some two hours on two cores
python benchmarks/together.py --tokens 10000      shorter trainings; what else is given goes to `ftbench run`, too

One by one, each run is a command of its own with an empty folder of runs and an empty cache: it evaluates the untouched
model, reads and judges the data and finds its references itself. The model's files are there beforehand. A seed is run
together with the others and then one by one, so that a machine that grows slower slows both. A line is added to
benchmarks/together/DEVICE.jsonl. It exits with 1 where the benchmark takes more than 0.7 of the sum.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from origin import machine, now

from ftbench.models.resolve import resolve_model
from ftbench.recipe import read_recipe

HERE = Path(__file__).parent
ALGORITHMS = ("full", "lora", "dpo", "orpo", "simpo")
SEEDS = 3
MOST = 0.7
"""Share of the sum that a benchmark should take at most."""


def main() -> None:
    """Time both, seed by seed, and print the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", help="a folder; by default the recipe's")
    given, more = parser.parse_known_args()
    model = given.model or str(resolve_model(read_recipe("quick").model, None).folder)
    settings = ["--device", given.device, "--model", model, *more]
    path = HERE / "together" / f"{given.device}.jsonl"
    path.parent.mkdir(exist_ok=True)
    together, alone = 0.0, dict.fromkeys(ALGORITHMS, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEEDS):
            together += _seconds(Path(folder), seed, ALGORITHMS, settings)
            for algorithm in ALGORITHMS:
                with tempfile.TemporaryDirectory() as own:
                    alone[algorithm] += _seconds(Path(own), seed, (algorithm,), settings)
    share = together / sum(alone.values())
    row = {"settings": more, "when": now(), "together": round(together, 1), "alone": alone, "share": round(share, 4)}
    with path.open("a") as file:
        file.write(json.dumps({**row, "environment": machine(given.device)}) + "\n")
    print(f"together {together:.0f} s, one by one {sum(alone.values()):.0f} s: {share:.2f} of it")
    sys.exit(1 if share > MOST else 0)


def _seconds(folder: Path, seed: int, algorithms: Sequence[str], settings: Sequence[str]) -> float:
    """Run algorithms with what a folder holds already, and return what it took."""
    asked = [part for name in algorithms for part in ("--algo", name)]
    command = [sys.executable, "-m", "ftbench", "run", "--out", str(folder / "runs"), "--seed", str(seed)]
    environment = {**os.environ, "FTBENCH_CACHE": str(folder / "cache")}
    start = perf_counter()
    done = subprocess.run([*command, *asked, *settings], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(asked)} ended with {done.returncode}: {done.stderr[-300:]}")
    return perf_counter() - start


if __name__ == "__main__":
    main()
