"""What the store and the table do with many runs: seconds and memory, with made-up results.

python benchmarks/store.py [--runs 10000 100000]            minutes, alone on the machine

Results are of five algorithms, six learning rates, and as many seeds and models as it takes; each holds what a real one
does (64 prompts' and 64 attacks' outcomes among it). Every command is a process of its own, five times after one that
is not counted; then a line for each number of runs is added to benchmarks/store/cpu.jsonl.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from statistics import median

from timed import once

from ftbench.evaluation.statistics import Measured, share
from ftbench.files import json_text
from ftbench.recipe import Recipe
from ftbench.results.result import (
    Checkpoint,
    DataFacts,
    Environment,
    JudgeFacts,
    Measures,
    Outcomes,
    Result,
)
from ftbench.results.store import RESULT, run_name

HERE = Path(__file__).parent
TIMES = 5
ALGORITHMS = {"full": 1e-4, "lora": 1e-3, "dpo": 5e-4, "orpo": 1e-3, "simpo": 5e-4}
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SEEDS = 5
COMMANDS = {
    "table": ["table"],
    "table --format json": ["table", "--format", "json"],
}


def main() -> None:
    """Make the runs, time every command on them, and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[10_000, 100_000])
    path = HERE / "store" / "cpu.jsonl"
    path.parent.mkdir(exist_ok=True)
    for count in parser.parse_args().runs:
        with tempfile.TemporaryDirectory() as place:
            size = _make(Path(place), count)
            row: dict[str, object] = {"runs": count, "result_bytes": size // count}
            for name, arguments in COMMANDS.items():
                first, *found = [once([*arguments, "--out", place]) for _ in range(TIMES + 1)]
                row[name] = {
                    "first_seconds": round(first[0], 2),
                    "seconds": [round(seconds, 2) for seconds, _ in found],
                    "median_seconds": round(median(seconds for seconds, _ in found), 2),
                    "resident_bytes": max(resident for _, resident in found),
                }
                print(f"{count:7,} {name:20} {row[name]}", flush=True)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _make(out: Path, count: int) -> int:
    """Write so many results; return their bytes."""
    size = 0
    for result in _results(count):
        folder = out / run_name(result.recipe)
        folder.mkdir()
        size += (folder / RESULT).write_text(json_text(result.model_dump(mode="json")))
    return size


def _results(count: int) -> Iterator[Result]:
    made = 0
    while True:
        model = f"model-{made // (len(ALGORITHMS) * len(RATES) * SEEDS)}"
        for algorithm, rate in ALGORITHMS.items():
            for factor in RATES:
                for seed in range(SEEDS):
                    if made == count:
                        return
                    yield _result(Recipe(algorithm=algorithm, model=model, seed=seed,
                                         options={"learning_rate": rate * factor}), made)  # fmt: skip
                    made += 1


def _result(recipe: Recipe, number: int) -> Result:
    draw = random.Random(number)
    replies, attacks = ([draw.random() < 0.9 for _ in range(64)] for _ in range(2))
    rise = [draw.gauss(0.1, 0.6) * 12 for _ in replies]
    speed = draw.uniform(200, 300)
    measures = Measures(
        adherence=share(sum(replies), 64),
        adherence_under_attack=share(sum(attacks), 64),
        distinct=Measured(mean=1.0, n=64),
        degenerate=Measured(mean=0.0, n=64),
        agreement=share(60, 64),
        kappa=0.8,
        forgetting=Measured(mean=sum(rise) / 768, low=-1.0, high=1.0, n=64),
        tokens_per_second=speed,
        training_seconds=40_000 / speed,
        run_seconds=40_000 / speed + 60,
        checkpoints=[Checkpoint(tokens=8000 * n, seconds=30.0 * n, adherence=0.2 * n) for n in range(1, 6)],
        training_tokens=40_007,
        training_prompts=516,
        training_sequences=516,
        optimiser_steps=516,
        final_loss=1.9,
        trainable_parameters=4_884_480,
        total_parameters=139_399_488,
        size_on_disk=9_830_505,
        peak_memory_bytes=400 * 2**20,
        peak_parts={"parameters": 280 * 2**20, "activations": 120 * 2**20},
        memory_kind="tensors",
        phase_seconds=dict.fromkeys(("data", "load", "adapt", "train", "save", "reload", "evaluate"), 7.5),
        phase_peak_bytes=dict.fromkeys(("data", "load", "adapt", "train", "save", "reload", "evaluate"), 2**30),
    )
    return Result(
        status="ok",
        recipe=recipe,
        recipe_digest=recipe.digest(),
        plugin=f"ftbench-{recipe.algorithm}",
        plugin_version="0.1.0",
        started=f"2026-01-{1 + number % 28:02d}T00:{number // 60 % 60:02d}:{number % 60:02d}.000+00:00",
        model_digest=sha256(recipe.model.encode()).hexdigest(),
        data=DataFacts(origin="sample", digest="d" * 64, training_examples=620, evaluation_prompts=64, left_out={}),
        judge=JudgeFacts(version="tfidf-logistic-2", auc=0.99, threshold=0.5, digest="e" * 64),
        measures=measures,
        outcomes=Outcomes(
            prompts="a" * 64,
            on_topic=replies,
            rise=rise,
            ordinary_tokens=[12] * 64,
            attacks="b" * 64,
            attacks_on_topic=attacks,
        ),
        environment=Environment(
            hardware="Abacus 3000", cores=2, threads=2, system="Linux", versions=dict.fromkeys(("torch", "peft"), "9.9")
        ),
    )


if __name__ == "__main__":
    main()
