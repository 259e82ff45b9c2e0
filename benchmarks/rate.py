"""Which share of a device's matrix rate full fine-tuning reaches, at one billion parameters.

python benchmarks/rate.py cuda            two minutes on a card of 40 GiB and more
python benchmarks/rate.py cpu --model llama-0.1b --batch 4 --steps 4

A model with random weights is trained in bf16 where the device has it, on full-length sequences whose every token is
learnt. Counted is what no training can do without: six operations a token and weight of the matrices that are
multiplied, the head among them, and attention's products, of which a causal mask needs half (PaLM's appendix B,
arXiv:2204.02311, counts all of them); nothing that is computed again. The rate is that of the device's fastest square
product of matrices, measured before. A line is added to benchmarks/rate/DEVICE.jsonl, with when, where and of which
code it is. On a card it exits with 1 where the share is below 45 %.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from origin import machine, now
from training import seconds_of

from ftbench.memory.fit import Fit
from ftbench.models.loading import prepare
from ftbench.models.precision import choose_precision, torch_dtype
from ftbench.models.skeleton import load_config
from ftbench.plugins import load_plugins
from ftbench.training.batching import Plan
from ftbench.training.encoding import EncodedExample, TokenSequence
from ftbench.training.trainer import OptimiserSettings, StepReport, Training

HERE = Path(__file__).parent
LEAST = {"cuda": 0.45, "cpu": 0.0}
SIZES = {"cuda": (4096, 8192, 16384), "cpu": (512, 1024)}
"""Rows of the square matrices whose product is timed."""
UNTIMED = 2
"""Steps at the beginning."""


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=LEAST)
    parser.add_argument("--model", default="llama-1b", help="of benchmarks/configs")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32, help="sequences a step")
    parser.add_argument("--micro-batch", type=int, help="sequences at a time; by default all of a step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--checkpointing", action="store_true")
    given = parser.parse_args()
    sizes = {name: getattr(given, name) for name in ("length", "batch", "micro_batch", "steps", "checkpointing")}
    case = {"device": given.device, "model": given.model, **sizes}
    row = {"case": case, **measure(HERE / "configs" / given.model, case), "when": now()}
    row["environment"] = machine(given.device)
    path = HERE / "rate" / f"{given.device}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(
        f"{given.model}: {row['parameters'] / 1e9:.2f}B parameters, {row['tokens_per_second']:.0f} tokens/s, "
        f"{row['used'] / 1e12:.3g} of {row['rate'] / 1e12:.3g} TFLOP/s in {row['precision']}: {row['share']:.0%}"
    )
    sys.exit(0 if row["share"] >= LEAST[given.device] else 1)


def measure(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Train as a case says, and return tokens/s and the share of the matrix rate, operations/s."""
    from transformers import AutoModelForCausalLM

    device = torch.device(case["device"])
    precision = choose_precision("auto", device)
    rate = max(product_rate(device, torch_dtype(precision), size) for size in SIZES[device.type])
    algorithm = load_plugins().make("full", {})
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(load_config(folder), dtype=torch_dtype(precision))
    model = algorithm.adapt(prepare(model.eval()), [])
    example = EncodedExample(TokenSequence((11,) * case["length"], 1), None)
    plan = Plan((example,) * case["batch"], case["steps"] * case["batch"] * case["length"], case["batch"], 0)
    fit = Fit((case["micro_batch"] or case["batch"]) * case["length"], case["checkpointing"])
    times: list[float] = []

    def report(_: StepReport) -> None:
        _wait(device)
        times.append(perf_counter())

    settings = OptimiserSettings(1e-5, 0.0, 0.0, 1.0)
    training = Training(model, None, plan, fit, settings, report, None, algorithm.packed)  # type: ignore[arg-type]
    algorithm.train(training)
    if fit.reductions:
        sys.exit(f"memory ran out: give a smaller --micro-batch than {case['micro_batch'] or case['batch']}")
    taken = [after - before for before, after in zip(times[UNTIMED - 1 :], times[UNTIMED:], strict=False)]
    speed = case["batch"] * case["length"] / median(taken)
    used = speed * needed(model, case["length"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    figures = {"rate": rate, "used": used, "share": used / rate, "tokens_per_second": speed}
    return {"parameters": parameters, "precision": precision, **figures}


def needed(model: Any, length: int) -> float:
    """Return the operations that a token of training needs, forward and backward, in sequences of a length."""
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(config.num_attention_heads * size)
    attention = 2 * 2 * int(config.num_hidden_layers) * width * length / 2  # scores and sums, of the half that is seen
    return 6.0 * weights + 3 * attention


def product_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Return how many operations a second a product of square matrices does."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / seconds_of(lambda: one @ other, device, times=8)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
