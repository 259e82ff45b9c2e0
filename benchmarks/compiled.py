"""Whether torch.compile pays in training: the shared loop with decoder layers compiled, and without, in turn.

python benchmarks/compiled.py cpu oasst1-en-validation.jsonl           about a quarter of an hour; needs a C++ compiler
python benchmarks/compiled.py cuda oasst1-en-validation.jsonl

Layers are compiled one by one for any number of tokens, as rows are of any length. What compiling takes falls on the
first steps, and is what these take longer than the same steps without. A line an algorithm is added to
benchmarks/compiled/DEVICE.jsonl.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from harness import trained_by
from origin import machine, now
from training import Case, prepare

from ftbench.training.trainer import StepReport, Training

HERE = Path(__file__).parent
STEPS, PAIRS = 24, 3
FIRST = 12
"""Steps that may still compile."""


def main() -> None:
    """Time both in turn, and print what compiled layers gain and take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("file", help="OASST1's English validation messages")
    given = parser.parse_args()
    path = HERE / "compiled" / f"{given.device}.jsonl"
    path.parent.mkdir(exist_ok=True)
    where = machine(given.device)
    for algorithm in ("full", "lora"):
        case: Case = {"device": given.device, "algorithm": algorithm, "whose": "ours", "steps": STEPS}
        _seconds(case, given.file, compiled=False)  # makes the kernels of all shapes
        pairs = []
        for index in range(PAIRS):
            found = {how: _seconds(case, given.file, compiled=how) for how in ((True, False), (False, True))[index % 2]}
            pairs.append({"plain": found[False], "compiled": found[True]})
        gain = median(pair["plain"][1] / pair["compiled"][1] for pair in pairs)
        taken = pairs[0]["compiled"][0] - pairs[0]["plain"][0]
        row = {"case": case, "when": now(), "seconds": pairs, "gain": round(gain, 4), "compiling": round(taken, 1)}
        with path.open("a") as file:
            file.write(json.dumps({**row, "environment": where}) + "\n")
        print(f"{algorithm:5} {gain:.3f} times as fast (median of {PAIRS} pairs); compiling took {taken:.0f} s")


def _seconds(case: Case, file: str, *, compiled: bool) -> tuple[float, float]:
    """Train; return what the first steps took, from the beginning, and what the others took."""
    times: list[float] = []
    run = Training.run

    def began(training: Training, *given: Any, **named: Any) -> None:
        if compiled:
            for layer in training.model.get_decoder().layers:
                layer.compile(dynamic=True)
        times.append(perf_counter())
        run(training, *given, **named)

    def report(_: StepReport) -> None:
        times.append(perf_counter())

    with trained_by(began):
        prepare(case, file, report)[0]()
    return times[FIRST] - times[0], times[-1] - times[FIRST]


if __name__ == "__main__":
    main()
