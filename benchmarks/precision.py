"""The loss after 100 steps in bf16 with float32 masters, against float32: same weights, examples and order.

python benchmarks/precision.py cpu oasst1-en-validation.jsonl          about half an hour
python benchmarks/precision.py cuda oasst1-en-validation.jsonl

The loss of a step is of four examples and differs from step to step by more than one percent: what is compared is the
mean of the last ten. A line a training is added to benchmarks/precision/DEVICE.jsonl; what is there is not made again.
It exits with 1 where they are more than 1 % apart.
"""

import argparse
import json
import sys
from itertools import product
from pathlib import Path
from statistics import mean

from origin import machine, now, rows_of
from training import Case, prepare

from ftbench.training.trainer import StepReport

HERE = Path(__file__).parent
STEPS, LAST = 100, 10
MOST = 0.01
"""What they may be apart."""


def main() -> None:
    """Train what is not there yet, and print the losses and how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("file", help="OASST1's English validation messages")
    given = parser.parse_args()
    path = HERE / "precision" / f"{given.device}.jsonl"
    path.parent.mkdir(exist_ok=True)
    where = machine(given.device)
    rows = rows_of(path, where)
    for algorithm, precision in product(("full", "lora"), ("float32", "bf16")):
        case: Case = {"device": given.device, "algorithm": algorithm, "whose": "ours", "precision": precision}
        case["steps"] = STEPS
        if case not in [row["case"] for row in rows]:
            losses = _losses(case, given.file)
            rows.append({"case": case, "when": now(), "losses": losses, "environment": where})
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    good = True
    for algorithm in ("full", "lora"):
        ends = {
            row["case"]["precision"]: mean(row["losses"][-LAST:])
            for row in rows
            if row["case"]["algorithm"] == algorithm
        }
        apart = ends["bf16"] / ends["float32"] - 1
        good &= abs(apart) <= MOST
        print(f"{algorithm:5} float32 {ends['float32']:.4f}, bf16 {ends['bf16']:.4f} nats/token: {apart:+.2%}")
    sys.exit(0 if good else 1)


def _losses(case: Case, file: str) -> list[float]:
    """Train, and return the loss of each step."""
    losses: list[float] = []

    def report(step: StepReport) -> None:
        losses.append(step.loss)

    train, _ = prepare(case, file, report)
    train()
    return losses


if __name__ == "__main__":
    main()
