"""Our training against TRL's trainers at their defaults: real tokens per second and peak memory.

python benchmarks/training.py cpu oasst1-en-validation.jsonl           process by process, in turn; about an hour
python benchmarks/training.py cuda oasst1-en-validation.jsonl

The same examples in the same order, effective batch 4, at most 512 tokens. Each measurement is a process of its own;
its first step is not timed, and no step's tensors are counted: a run counts three of its hundreds of steps, which here
would be three of eight. A line a measurement is added to benchmarks/training/DEVICE.jsonl; what is there is not
measured again.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ftbench.execution.local import PROMPT_MEMORY
from ftbench.training.watch import StepWatch

if TYPE_CHECKING:
    import torch

    from ftbench.training.trainer import StepReport

HERE = Path(__file__).parent
RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("trl-sft", {}),
    "lora": ("trl-sft", {"adapter": "lora"}),
    "dpo": ("trl-dpo", {"adapter": "lora"}),
    "orpo": ("trl-orpo", {"adapter": "lora"}),
}
OWN: dict[str, dict[str, Any]] = {"dpo": {"sft_share": 0.0}}
"""TRL's DPO has no supervised warm-up."""

STEPS = 8
Case = dict[str, Any]


class Uncounted(StepWatch):
    """Counts no step's tensors."""

    def expect(self, stage: str, steps: Any, *, limited: bool) -> None:
        """Choose none."""


def main() -> None:
    """Measure what is not there yet, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("file", help="OASST1's English validation messages")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", help="one measurement, as JSON: what the processes are called with")
    given = parser.parse_args()
    if given.case:
        print(json.dumps(_measure(json.loads(given.case), given.file)))
        return
    path = HERE / "training" / f"{given.device}.jsonl"
    path.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = [row["case"] for row in rows]
    for repeat, algorithm, whose in product(range(given.repeats), ["limit", *RIVALS], ("ours", "trl")):
        case = {"device": given.device, "algorithm": algorithm, "whose": whose, "repeat": repeat}
        if case in known or (algorithm == "limit" and whose == "trl"):
            continue
        command = [sys.executable, __file__, given.device, given.file, "--case", json.dumps(case)]
        # Ours as in a run's own process; TRL's as somebody who uses TRL would have it.
        environment = {**os.environ, **(PROMPT_MEMORY if whose == "ours" else {})}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            sys.exit(f"{case}: {done.stderr.strip().splitlines()[-1]}")
        row = {"case": case, **json.loads(done.stdout.strip().splitlines()[-1])}
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    _summary(rows)


def _measure(case: Case, file: str) -> dict[str, Any]:
    """Train for a few steps, or find out what the device's matrix products alone would allow."""
    import torch

    from ftbench.memory.meter import Meter
    from ftbench.training.trainer import StepReport

    device = torch.device(case["device"])
    if case["algorithm"] == "limit":
        return _limit(device)
    reports: list[StepReport] = []
    times: list[float] = []

    def report(step: StepReport) -> None:
        reports.append(step)
        times.append(perf_counter())

    meter = Meter(device)
    train, precision = prepare(case, file, report)
    with meter.phase("train"):
        train()
    return {
        "tokens_per_second": round(sum(step.tokens for step in reports[1:]) / (times[-1] - times[0]), 1),
        "peak_bytes": meter.peak["train"],
        "losses": [step.loss for step in reports],
        "precision": precision,
    }


def prepare(case: Case, file: str, report: Callable[["StepReport"], None]) -> tuple[Callable[[], None], str]:
    """Return what trains as a case says, and in which precision.

    A case has `device`, `algorithm` and `whose`, and where they are not the usual ones `steps` and `precision`.
    """
    import torch
    import transformers

    from ftbench.data.task import build_task
    from ftbench.memory.fit import Fit
    from ftbench.models.chat import ChatFormat
    from ftbench.models.loading import load_model, load_plain, load_tokenizer
    from ftbench.models.precision import choose_precision
    from ftbench.models.resolve import resolve_model
    from ftbench.plugins import load_plugins
    from ftbench.recipe import read_recipe
    from ftbench.training.batching import Plan
    from ftbench.training.encoding import encode
    from ftbench.training.trainer import OptimiserSettings, Training

    recipe = read_recipe("oasst1-smollm2").change(data=file, max_length=512, effective_batch_size=4)
    device = torch.device(case["device"])
    name, options = case["algorithm"], OWN.get(case["algorithm"], {})
    if case["whose"] == "trl":
        name, options = RIVALS[name]
    algorithm = load_plugins().make(name, options)
    precision = "float32" if algorithm.own_trainer else choose_precision(case.get("precision", "auto"), device)
    folder = resolve_model(recipe.model, recipe.revision).folder
    transformers.set_seed(0)
    chat = ChatFormat(load_tokenizer(folder))
    data = build_task(recipe.data, recipe.topic, recipe.lang, recipe.evaluation_prompts)
    encoded = encode(data.train, chat, recipe.max_length, preferences=algorithm.needs == "preferences")
    plan = Plan(encoded.examples, 10**6, recipe.effective_batch_size, recipe.seed)
    tokens = sum(step.tokens for step in plan.steps[: case.get("steps", STEPS)])
    plan = Plan(encoded.examples, tokens, plan.effective_batch_size, plan.seed)
    settings = OptimiserSettings(algorithm.config.learning_rate, 0.0, recipe.warmup, recipe.max_grad_norm)

    def train() -> None:
        torch.manual_seed(0)
        load = load_plain if algorithm.own_trainer else load_model
        model = algorithm.adapt(load(folder, device, precision), [])
        fit = Fit(recipe.micro_batch_tokens)
        plain = Training(model, chat.tokenizer, plan, fit, settings, report, None, algorithm.packed)
        algorithm.train(replace(plain, watch=Uncounted()))

    return train, "TRL's" if algorithm.own_trainer else precision


def _limit(device: "torch.device", tokens: int = 1024) -> dict[str, float]:
    """Time the matrix products of training alone, each of a layer's shape: three for full, two where weights rest."""
    import torch

    from ftbench.models.loading import load_model
    from ftbench.models.precision import choose_precision
    from ftbench.models.resolve import resolve_model
    from ftbench.recipe import read_recipe

    recipe = read_recipe("oasst1-smollm2")
    folder = resolve_model(recipe.model, recipe.revision).folder
    model = load_model(folder, device, choose_precision("auto", device))
    seconds = {"full": 0.0, "lora": 0.0}
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        weight = module.weight.detach()
        rows = tokens if module is not model.get_output_embeddings() else tokens // 2  # about half are completion
        inputs, errors = weight.new_empty(rows, weight.shape[1]), weight.new_empty(rows, weight.shape[0])
        inputs.normal_(), errors.normal_()
        forward = _seconds(lambda x=inputs, w=weight: x @ w.T, model.device)
        back = _seconds(lambda e=errors, w=weight: e @ w, model.device)
        by_weight = _seconds(lambda e=errors, x=inputs: e.T @ x, model.device)
        seconds["full"] += forward + back + by_weight
        seconds["lora"] += forward + back
    return {f"{name}_tokens_per_second": round(tokens / taken, 1) for name, taken in seconds.items()}


def _seconds(product: Any, device: Any) -> float:
    import torch

    taken = []
    for _ in range(4):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = perf_counter()
        product()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(perf_counter() - start)
    return float(median(taken[1:]))


def _summary(rows: list[dict[str, Any]]) -> None:
    def middle(algorithm: str, whose: str, figure: str) -> float:
        found = [row for row in rows if (row["case"]["algorithm"], row["case"]["whose"]) == (algorithm, whose)]
        return median(row[figure] for row in found)

    for algorithm in RIVALS:
        speeds = [middle(algorithm, whose, "tokens_per_second") for whose in ("ours", "trl")]
        peaks = [middle(algorithm, whose, "peak_bytes") / 2**30 for whose in ("ours", "trl")]
        of_limit = ""
        if algorithm in ("full", "lora"):
            limit = middle("limit", "ours", f"{algorithm}_tokens_per_second")
            of_limit = f", {speeds[0] / limit:.0%} of what its matrix products allow ({limit:.0f})"
        print(
            f"{algorithm:5} {speeds[0]:6.0f} tokens/s against {speeds[1]:6.0f}: {speeds[0] / speeds[1]:.2f} times"
            f"{of_limit}; peak {peaks[0]:.2f} GiB against {peaks[1]:.2f}: {peaks[0] / peaks[1]:.2f} times"
        )


if __name__ == "__main__":
    main()
