"""Prediction against measurement: what training takes in memory, over algorithms, batches and lengths.

python benchmarks/memory.py cpu                 live tensor bytes; minutes
python benchmarks/memory.py cuda                bytes allocated, 0.1B to 8B; for a card of 80 GiB and more

Each case is a process of its own: it predicts from the configuration, then trains a model with random weights for five
steps. A line a case is added to benchmarks/memory/DEVICE.jsonl; cases that are there are not made again.
"""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODELS = {"cpu": ["llama-0.1b"], "cuda": ["llama-0.1b", "llama-0.4b", "llama-1.7b", "llama-8b"]}
ALGORITHMS = ["full", "lora", "dpo", "orpo"]
BATCHES = {"cpu": [1, 4], "cuda": [1, 4, 16]}
LENGTHS = {"cpu": [128, 384], "cuda": [256, 1024]}
LARGE = {("llama-8b", "full")}
"""More than any card has: weights, gradients and the optimiser's state in float32 take 128 GB."""

Case = dict[str, Any]


def main() -> None:
    """Make all cases that are not there yet, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=MODELS)
    parser.add_argument("--case", help="one case, as JSON: what the processes are called with")
    given = parser.parse_args()
    if given.case:
        print(json.dumps(_carry_out(json.loads(given.case))))
        return
    path = HERE / "memory" / f"{given.device}.jsonl"
    path.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = [row["case"] for row in rows]
    for case in _cases(given.device):
        if case in known:
            continue
        command = [sys.executable, __file__, given.device, "--case", json.dumps(case)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            row = {"case": case, "error": done.stderr.strip().splitlines()[-1][:300]}
        else:
            row = {"case": case, **json.loads(done.stdout.strip().splitlines()[-1])}
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(_line(row), flush=True)
    _summary(rows)


def _cases(device: str) -> list[Case]:
    return [
        {
            "device": device, "model": model, "algorithm": algorithm, "batch": batch, "length": length,
            "micro_batch": micro, "checkpointing": checkpointing,
        }
        for model, algorithm, batch, length, checkpointing in product(
            MODELS[device], ALGORITHMS, BATCHES[device], LENGTHS[device], (False, True)
        )
        if (model, algorithm) not in LARGE
        for micro in dict.fromkeys((batch, 1))
        if not (checkpointing and micro != batch)
    ]  # fmt: skip


def _carry_out(case: Case) -> dict[str, Any]:
    """Predict a case, then measure it."""
    import torch
    from transformers import AutoModelForCausalLM

    from ftbench.execution.forecast import Question, forecast
    from ftbench.memory.fit import Fit
    from ftbench.memory.plan import Cut
    from ftbench.models.loading import prepare
    from ftbench.models.precision import choose_precision, torch_dtype
    from ftbench.models.skeleton import load_config
    from ftbench.plugins import load_plugins
    from ftbench.training.trainer import OptimiserSettings, Training

    registry, device = load_plugins(), torch.device(case["device"])
    folder = HERE / "configs" / case["model"]
    pairs = registry.make(case["algorithm"], {}).needs == "preferences"
    plan = _plan(case, pairs=pairs)
    micro = case["micro_batch"] * plan.examples[0].tokens
    way = Cut(micro, case["checkpointing"])
    precision = choose_precision("auto", device)
    question = Question(load_config(folder), plan, device, precision)
    (predicted,) = forecast(question, registry.make(case["algorithm"], {}), [way])
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(question.config, dtype=torch_dtype(precision))
    algorithm = registry.make(case["algorithm"], {})
    model = algorithm.adapt(prepare(model.eval()), [])
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    fit = Fit(micro, case["checkpointing"])
    settings = OptimiserSettings(1e-5, 0.0, 0.0, 1.0)
    training = Training(model, None, plan, fit, settings, lambda _: None, None, algorithm.packed)  # type: ignore[arg-type]
    algorithm.train(training)
    counted = max(parts.total for parts in training.watch.peaks.values())
    allocated = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    measured = allocated if allocated is not None else counted
    return {
        "predicted": predicted.peak.total, "measured": measured, "tensors": counted, "moment": predicted.moment,
        "error_percent": round(100 * (predicted.peak.total / measured - 1), 2), "reductions": len(fit.reductions),
    }  # fmt: skip


def _plan(case: Case, *, pairs: bool) -> Any:
    from ftbench.training.batching import Plan
    from ftbench.training.encoding import EncodedExample, TokenSequence

    sequence = TokenSequence((11,) * case["length"], case["length"] // 4)
    other = TokenSequence((12,) * case["length"], case["length"] // 4)
    example = EncodedExample(sequence, other if pairs else None)
    return Plan((example,) * case["batch"], 5 * case["batch"] * example.tokens, case["batch"], 0)


def _line(row: dict[str, Any]) -> str:
    case = row["case"]
    about = (
        f"{case['model']:11} {case['algorithm']:5} {case['batch']:3} x {case['length']:4} tokens, micro-batch "
        f"{case['micro_batch']:2}{', checkpointing' if case['checkpointing'] else '':15}"
    )
    if "error" in row:
        return f"{about} {row['error']}"
    predicted, measured = row["predicted"] / 2**30, row["measured"] / 2**30
    return f"{about} predicted {predicted:6.2f} GiB  measured {measured:6.2f} GiB  {row['error_percent']:+6.2f} %"


def _summary(rows: list[dict[str, Any]]) -> None:
    errors = sorted(abs(row["error_percent"]) for row in rows if "error" not in row)
    failed = sum("error" in row for row in rows)
    within = sum(error <= 5 for error in errors)
    middle, worst = errors[len(errors) // 2], errors[-1]
    print(f"{len(errors)} cases, {failed} failed; {within} within 5 %, median {middle} %, worst {worst} %")


if __name__ == "__main__":
    main()
