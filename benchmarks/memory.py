"""Prediction against measurement: what training takes in memory, over algorithms, batches and lengths.

python benchmarks/memory.py cpu                               live tensor bytes; 40 cases in a quarter of an hour
python benchmarks/memory.py cpu --precision float32           as where there is no bf16
python benchmarks/memory.py cuda --minutes 12                 bytes allocated, 0.1B to 8B; for a card of 80 GiB and more
python benchmarks/memory.py cuda --models llama-8b --to FILE

Each case predicts from the configuration, then trains a model with random weights for five steps, under the budget that
the prediction asks for: whether what should fit does is measured as well, and on the CPU what the process held beside
the tensors at most, looked at every few milliseconds. On the CPU a case is a process of its own, on CUDA a model's are
one. A line a case, with when, where and of which code it is, is added to benchmarks/memory/DEVICE-PRECISION.jsonl or
FILE; cases that are there are not made again: what --minutes cut short goes on.
It exits with 1 where a prediction is more than 5 % wrong, or something that should fit does not.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftbench.models.precision import Precision

HERE = Path(__file__).parent
MODELS = {"cpu": ["llama-0.1b"], "cuda": ["llama-0.1b", "llama-0.4b", "llama-1.7b", "llama-8b"]}
ON_CUDA = [
    ("full", 4, 1024, 4, False),
    ("full", 16, 1024, 16, True),
    ("lora", 16, 1024, 16, False),
    ("lora", 4, 256, 1, False),
    ("dpo", 4, 1024, 4, False),
    ("orpo", 4, 1024, 4, True),
]
"""Algorithm, batch, length, micro-batch, checkpointing: 24 cases over four models, in a quarter of an hour or two."""
LIMIT = 5.0
"""Percent that a prediction may be off."""

Case = dict[str, Any]
Row = dict[str, Any]


def main() -> None:
    """Make all cases that are not there yet, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=MODELS)
    parser.add_argument("--precision", choices=["bf16", "float32"], help="by default what a run here would take")
    parser.add_argument("--models", help="some of them, with commas between")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no case after so many")
    parser.add_argument("--to", type=Path, help="where lines are added, in place of benchmarks/memory")
    parser.add_argument("--cases", help="a list as JSON: what the processes are called with")
    given = parser.parse_args()
    end = time.time() + 60 * given.minutes
    if given.cases:
        _work(json.loads(given.cases), given.precision, end)
        return
    precision = given.precision or _usual_precision(given.device)
    path = given.to or HERE / "memory" / f"{given.device}-{precision}.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    rows = {json.dumps(row["case"]): row for row in map(json.loads, lines) if "environment" in row}
    models = given.models.split(",") if given.models else MODELS[given.device]
    for cases in _groups(given.device, models):
        left = [case for case in cases if json.dumps(case) not in rows]
        for row in _made(left, precision, end):
            rows[json.dumps(row["case"])] = row
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(_line(row), flush=True)
    sys.exit(_summary(list(rows.values())))


def _usual_precision(device: str) -> "Precision":
    import torch

    from ftbench.models.precision import choose_precision

    return choose_precision("auto", torch.device(device))


def _groups(device: str, models: list[str]) -> list[list[Case]]:
    """Return the cases, those together that one process makes."""
    keys = ("device", "model", "algorithm", "batch", "length", "micro_batch", "checkpointing")
    if device == "cuda":
        return [[dict(zip(keys, (device, model, *one), strict=True)) for one in ON_CUDA] for model in models]
    return [
        [dict(zip(keys, (device, model, algorithm, batch, length, micro, checkpointing), strict=True))]
        for model, algorithm, batch, length, checkpointing in product(
            models, ["full", "lora", "dpo", "orpo"], [1, 4], [128, 384], (False, True)
        )
        for micro in dict.fromkeys((batch, 1))
        if not (checkpointing and micro != batch)
    ]


def _made(cases: list[Case], precision: "Precision", end: float) -> Iterator[Row]:
    """Yield the rows of cases that one process makes before the end; what a killed one had predicted is kept."""
    from ftbench.memory.heap import prompt_memory

    minutes = (end - time.time()) / 60
    if not cases or minutes <= 0:
        return
    command = [sys.executable, __file__, cases[0]["device"], "--precision", precision]
    command += ["--cases", json.dumps(cases), "--minutes", str(minutes)]
    variables = {**os.environ, **prompt_memory(limited=True)}
    begun: Row | None = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        for text in process.stdout:
            if not text.startswith("{"):
                continue
            row: Row = json.loads(text)
            done = row.pop("done")
            begun = None if done else row
            if done:
                yield row
    if process.returncode and begun is not None:
        yield {**begun, "error": f"the process ended with code {process.returncode}"}
    elif process.returncode:
        raise SystemExit(f"a process ended with code {process.returncode} between cases; see above")


def _work(cases: list[Case], precision: "Precision", end: float) -> None:
    """Make cases, and print a line as each is predicted and as it is done."""
    from ftbench.memory.fit import free_memory, is_out_of_memory

    for case in cases:
        if time.time() > end:
            return
        row: Row = {"case": case, "when": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            _carry_out(case, precision, row)
        except Exception as error:
            row["oom"] = is_out_of_memory(error)
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(json.dumps({**row, "done": True}), flush=True)
        free_memory()


def _carry_out(case: Case, precision: "Precision", row: Row) -> None:
    """Predict a case, then measure it under the budget that it should fit into; `row` has what is known so far."""
    import torch

    from ftbench.execution.environment import describe
    from ftbench.execution.forecast import Question, forecast
    from ftbench.memory.budget import budget_for, device_memory, enforce_budget, lift_budget
    from ftbench.memory.plan import Cut
    from ftbench.models.skeleton import load_config
    from ftbench.plugins import load_plugins

    registry, device = load_plugins(), torch.device(case["device"])
    plan = _plan(case, pairs=registry.make(case["algorithm"], {}).needs == "preferences")
    way = Cut(case["micro_batch"] * plan.examples[0].tokens, case["checkpointing"])
    question = Question(load_config(HERE / "configs" / case["model"]), plan, device, precision)
    (predicted,) = forecast(question, registry.make(case["algorithm"], {}), [way])
    budget = budget_for(predicted.peak.total, device.type)
    include = {"hardware", "cores", "threads", "precision", "versions", "code"}
    row |= {
        "predicted": predicted.peak.total, "moment": predicted.moment, "budget": budget,
        "fits": budget <= device_memory(device.type), "oom": False,
        "environment": describe(device, precision).model_dump(include=include),
    }  # fmt: skip
    print(json.dumps({**row, "done": False}), flush=True)
    if not row["fits"]:
        return
    enforce_budget(budget, device)
    try:
        with _data_seen() as seen:
            row |= _measure(question, registry.make(case["algorithm"], {}), way)
    finally:
        lift_budget(device)
    if case["device"] == "cpu":
        row["beside"] = max(seen) - seen[0] - row["tensors"]
    row["error_percent"] = round(100 * (row["predicted"] / row["measured"] - 1), 2)


@contextmanager
def _data_seen() -> Iterator[list[int]]:
    """Give a list that grows every few milliseconds: bytes that a budget on the CPU counts, from now on."""
    from ftbench.memory.budget import data_bytes

    seen, ended = [data_bytes()], Event()

    def look() -> None:
        while not ended.wait(0.005):
            seen.append(data_bytes())

    looking = Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        ended.set()
        looking.join()


def _measure(question: Any, algorithm: Any, way: Any) -> Row:
    """Train a model with random weights, and return the peak."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftbench.memory.fit import Fit
    from ftbench.models.loading import prepare
    from ftbench.models.precision import torch_dtype
    from ftbench.training.trainer import OptimiserSettings, Training

    on_card = question.device.type == "cuda"
    torch.manual_seed(0)
    with question.device:
        model = AutoModelForCausalLM.from_config(question.config, dtype=torch_dtype(question.precision))
    model = algorithm.adapt(prepare(model.eval()), [])
    if on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    fit = Fit(way.micro_batch_tokens, way.checkpointing)
    settings = OptimiserSettings(1e-5, 0.0, 0.0, 1.0)
    training = Training(model, None, question.plan, fit, settings, lambda _: None, None, algorithm.packed)  # type: ignore[arg-type]
    start = time.perf_counter()
    algorithm.train(training)
    seconds = time.perf_counter() - start
    counted = max(parts.total for parts in training.watch.peaks.values())
    measured = torch.cuda.max_memory_allocated() if on_card else counted
    return {
        "measured": measured, "tensors": counted, "reductions": len(fit.reductions), "seconds": round(seconds, 2)
    }  # fmt: skip


def _plan(case: Case, *, pairs: bool) -> Any:
    from ftbench.training.batching import Plan
    from ftbench.training.encoding import EncodedExample, TokenSequence

    sequence = TokenSequence((11,) * case["length"], case["length"] // 4)
    other = TokenSequence((12,) * case["length"], case["length"] // 4)
    example = EncodedExample(sequence, other if pairs else None)
    return Plan((example,) * case["batch"], 5 * case["batch"] * example.tokens, case["batch"], 0)


def _line(row: Row) -> str:
    case = row["case"]
    about = (
        f"{case['model']:11} {case['algorithm']:5} {case['batch']:3} x {case['length']:4} tokens, micro-batch "
        f"{case['micro_batch']:2}{', checkpointing' if case['checkpointing'] else '':15}"
    )
    if "predicted" in row:
        about += f" predicted {row['predicted'] / 2**30:6.2f} GiB"
    if "error" in row:
        return f"{about}  {row['error']}"
    if not row["fits"]:
        return f"{about}  more than the device has"
    about += f"  measured {row['measured'] / 2**30:6.2f} GiB  {row['error_percent']:+6.2f} %"
    return about + (f"  {row['beside'] / 2**20:4.0f} MiB beside" if "beside" in row else "")


def _summary(rows: list[Row]) -> int:
    """Print how good predictions were; return the exit code."""
    errors = sorted(abs(row["error_percent"]) for row in rows if "error_percent" in row)
    failed = [row for row in rows if "error" in row]
    broken = [row for row in rows if row.get("fits") and (row.get("oom") or row.get("reductions"))]
    within = sum(error <= LIMIT for error in errors)
    measured = f"median {errors[len(errors) // 2]} %, worst {errors[-1]} %" if errors else "none measured"
    print(
        f"{len(rows)} cases, {len(failed)} failed, {len(broken)} of those that should fit did not; "
        f"{within} within {LIMIT:g} %, {measured}"
    )
    return 1 if failed or broken or within < len(errors) else 0


if __name__ == "__main__":
    main()
