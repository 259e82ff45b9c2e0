"""Our training against TRL's trainers at their defaults: real tokens per second and peak memory.

python benchmarks/training.py cpu oasst1-en-validation.jsonl           process by process, in turn; about an hour
python benchmarks/training.py cuda oasst1-en-validation.jsonl

Prompts with the reply that people ranked first, for preferences also the second; the same examples in the same order,
effective batch 4, at most 512 tokens. Each measurement is a process of its own; its first step is not timed, and no
step's tensors are counted: a run counts three of its hundreds of steps, which here would be three of eight. Where
reference log-probabilities are computed before the first step, the timed steps' share of that time counts, for TRL
computes them within. A line a measurement is added to benchmarks/training/DEVICE.jsonl; what is there of this machine
is not measured again. It exits with 1 where a ratio is not what it should be.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from origin import machine, now, rows_of

from ftbench.memory.heap import prompt_memory
from ftbench.training.watch import StepWatch

if TYPE_CHECKING:
    import torch

    from ftbench.data.task import Example
    from ftbench.training.batching import MicroBatch
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

FASTER = {"cpu": 3.5, "cuda": 2.0}
"""How many times TRL's tokens a second ours should be, at least."""
LEANER = {"cpu": {"full": 0.5, "lora": 0.35, "dpo": 0.35, "orpo": 0.35}, "cuda": dict.fromkeys(RIVALS, 0.5)}
"""Which share of TRL's peak memory ours should be, at most."""

STEPS = 8
Case = dict[str, Any]


class Uncounted(StepWatch):
    """Counts no step's tensors; `began` says when each stage began, seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[str, float] = {}

    def expect(
        self, stage: str, steps: "Sequence[Sequence[MicroBatch]]", *, limited: bool, padded: bool = False
    ) -> None:
        """Choose none."""
        self.began[stage] = perf_counter()


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
    where = machine(given.device)
    rows = rows_of(path, where)
    known = [row["case"] for row in rows]
    for repeat, algorithm, whose in product(range(given.repeats), ["limit", *RIVALS], ("ours", "trl")):
        case = {"device": given.device, "algorithm": algorithm, "whose": whose, "repeat": repeat}
        if case in known or (algorithm == "limit" and whose == "trl"):
            continue
        command = [sys.executable, __file__, given.device, given.file, "--case", json.dumps(case)]
        # Ours as in a run's own process; TRL's as somebody who uses TRL would have it.
        environment = {**os.environ, **(prompt_memory(limited=False) if whose == "ours" else {})}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            sys.exit(f"{case} ended with {done.returncode}: {done.stderr[-300:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        row = {"case": case, "when": now(), **found, "environment": where}
        rows.append(row)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print({**case, **found}, flush=True)
    sys.exit(0 if _summary(rows, given.device) else 1)


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

    meter, watch = Meter(device), Uncounted()
    train, precision = prepare(case, file, report, watch)
    with meter.phase("train"):
        train()
    timed, tokens = sum(step.tokens for step in reports[1:]), sum(step.tokens for step in reports)
    reference = watch.began["train"] - watch.began["reference"] if "reference" in watch.began else 0.0
    seconds = times[-1] - times[0] + reference * timed / tokens
    return {
        "tokens_per_second": round(timed / seconds, 1),
        "tokens": tokens,
        "peak_bytes": meter.peak["train"],
        "losses": [step.loss for step in reports],
        "precision": precision,
    }


def read_examples(file: str) -> "list[Example]":
    """Return each English prompt of OASST1's messages with the reply ranked first, and the second as rejected."""
    from ftbench.data.conversations import Selection
    from ftbench.data.sources import read_source
    from ftbench.data.task import Example

    content = read_source(file, "en").content
    if not isinstance(content, Selection):
        sys.exit(f"{file} holds no messages of OASST1")
    return [
        Example(one.prompt, one.replies[0].text, one.replies[1].text if len(one.replies) > 1 else None)
        for one in content.conversations
    ]


def prepare(
    case: Case, file: str, report: Callable[["StepReport"], None], watch: Uncounted | None = None
) -> tuple[Callable[[], None], str]:
    """Return what trains as a case says, and in which precision.

    A case has `device`, `algorithm` and `whose`, and where they are not the usual ones `steps`, `precision`, `model`.
    """
    import torch
    import transformers

    from ftbench.memory.fit import Fit
    from ftbench.models.attention import is_packed
    from ftbench.models.chat import ChatFormat
    from ftbench.models.loading import load_model, load_plain, load_tokenizer
    from ftbench.models.precision import choose_precision
    from ftbench.models.resolve import resolve_model
    from ftbench.plugins import load_plugins
    from ftbench.recipe import read_recipe
    from ftbench.training.batching import Plan
    from ftbench.training.encoding import encode
    from ftbench.training.trainer import OptimiserSettings, Training

    recipe = read_recipe("oasst1-smollm2").change(max_length=512, effective_batch_size=4)
    recipe = recipe.change(model=case.get("model", recipe.model))
    device = torch.device(case["device"])
    name, options = case["algorithm"], OWN.get(case["algorithm"], {})
    if case["whose"] == "trl":
        name, options = RIVALS[name]
    algorithm = load_plugins().make(name, options)
    precision = "float32" if algorithm.own_trainer else choose_precision(case.get("precision", "auto"), device)
    folder = resolve_model(recipe.model, recipe.revision).folder
    transformers.set_seed(0)
    if not algorithm.own_trainer:  # as in a run's own process
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    chat = ChatFormat(load_tokenizer(folder))
    encoded = encode(read_examples(file), chat, recipe.max_length, preferences=algorithm.needs == "preferences")
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
        if not algorithm.own_trainer and not is_packed(model):
            sys.exit("the model does not take packed rows here: what would be measured is padding")
        algorithm.train(replace(plain, watch=watch or Uncounted()))

    return train, "TRL's" if algorithm.own_trainer else precision


def _limit(device: "torch.device", tokens: int = 1024) -> dict[str, Any]:
    """Time the matrix products of training alone, each of a layer's shape: three for full, two where weights rest."""
    import torch

    from ftbench.models.loading import load_model
    from ftbench.models.precision import choose_precision
    from ftbench.models.resolve import resolve_model
    from ftbench.recipe import read_recipe

    recipe = read_recipe("oasst1-smollm2")
    folder = resolve_model(recipe.model, recipe.revision).folder
    precision = choose_precision("auto", device)
    model = load_model(folder, device, precision)
    seconds = {"full": 0.0, "lora": 0.0}
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        weight = module.weight.detach()
        rows = tokens if module is not model.get_output_embeddings() else tokens // 2  # about half are completion
        inputs, errors = weight.new_empty(rows, weight.shape[1]), weight.new_empty(rows, weight.shape[0])
        inputs.normal_(), errors.normal_()
        forward = seconds_of(lambda x=inputs, w=weight: x @ w.T, model.device)
        back = seconds_of(lambda e=errors, w=weight: e @ w, model.device)
        by_weight = seconds_of(lambda e=errors, x=inputs: e.T @ x, model.device)
        seconds["full"] += forward + back + by_weight
        seconds["lora"] += forward + back
    speeds = {f"{name}_tokens_per_second": round(tokens / taken, 1) for name, taken in seconds.items()}
    return {**speeds, "precision": precision}


def seconds_of(product: Any, device: Any, times: int = 4) -> float:
    """Return the median of the seconds that some work on a device takes, the first time left out."""
    import torch

    taken = []
    for _ in range(times):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = perf_counter()
        product()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(perf_counter() - start)
    return float(median(taken[1:]))


def _summary(rows: list[dict[str, Any]], device: str) -> bool:
    """Print medians, their spread and ratios; say whether all ratios are what they should be."""

    def of(algorithm: str, whose: str, figure: str) -> list[float]:
        found = [row for row in rows if (row["case"]["algorithm"], row["case"]["whose"]) == (algorithm, whose)]
        if len({row["precision"] for row in found}) > 1:
            sys.exit(f"{algorithm}: not all rows are of one precision; their medians say nothing")
        return [row[figure] for row in found]

    good = True
    for algorithm in RIVALS:
        speeds = [of(algorithm, whose, "tokens_per_second") for whose in ("ours", "trl")]
        peaks = [median(of(algorithm, whose, "peak_bytes")) / 2**30 for whose in ("ours", "trl")]
        (ours, rival), (low, high) = map(median, speeds), (min(speeds[0]), max(speeds[0]))
        of_limit = ""
        if algorithm in ("full", "lora"):
            limit = median(of("limit", "ours", f"{algorithm}_tokens_per_second"))
            of_limit = f", {ours / limit:.0%} of what its matrix products allow ({limit:.0f})"
        faster, leaner = ours / rival, peaks[0] / peaks[1]
        short = [f"{FASTER[device]} times"] if faster < FASTER[device] else []
        short += [f"{LEANER[device][algorithm]} of the memory"] if leaner > LEANER[device][algorithm] else []
        good &= not short
        print(
            f"{algorithm:5} {ours:6.0f} ({low:.0f} to {high:.0f}) tokens/s against {rival:6.0f}: {faster:.2f} times"
            f"{of_limit}; peak {peaks[0]:.2f} GiB against {peaks[1]:.2f}: {leaner:.2f} times"
            f"{'; not reached: ' + ' and '.join(short) if short else ''}"
        )
    return good


if __name__ == "__main__":
    main()
