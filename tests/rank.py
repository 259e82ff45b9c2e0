"""One of the processes of test_sharding.py: trains the same cases, alone or with others, and writes what came of it.

python rank.py MODELS OUT, under torchrun or by itself.
"""

import gc
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ftbench.models.loading import load_model
from ftbench.models.precision import Precision
from ftbench.plugins import load_plugins
from ftbench.training.batching import Plan
from ftbench.training.sharding import Ranks, make_mesh, shard, unite
from ftbench.training.trainer import StepReport
from rank_killed import KILLED, break_off
from tiny import draw_pairs, drop_nothing, make_training

CPU = torch.device("cpu")
CASES: dict[str, tuple[str, str, dict[str, Any], Precision]] = {
    "llama full": ("llama", "full", {}, "float32"),
    "llama lora": ("llama", "lora", {}, "float32"),
    "llama dpo": ("llama", "dpo", {}, "float32"),
    "untied dpo": ("untied", "dpo", {"adapter": "none"}, "float32"),
    "gpt2 full": ("gpt2", "full", {}, "float32"),
    "gpt2 lora": ("gpt2", "lora", {}, "float32"),
    "gpt2 dpo": ("gpt2", "dpo", {}, "float32"),
    "llama checkpointing": ("llama", "full", {}, "float32"),
    "deep full": ("deep", "full", {}, "float32"),
    "deep lora": ("deep", "lora", {}, "bf16"),
}


def plan_of(model: PreTrainedModel) -> Plan:
    """What every case is trained on: three passes a rank and step, and not all have an example left for the last."""
    return replace(make_training(model, draw_pairs(1, 12), tokens=900).plan, effective_batch_size=5)


def train(case: str, models: Path, ranks: Ranks, out: Path) -> dict[str, Any]:
    """Train one case; the first rank writes its model, and returns what was reported and counted."""
    kind, name, options, precision = CASES[case]
    algorithm = load_plugins().make(name, options)
    torch.manual_seed(3)
    model = algorithm.adapt(load_model(models / kind, CPU, precision), [])
    drop_nothing(model)
    if ranks.count > 1:
        shard(model, make_mesh(ranks.count, CPU))
    reports: list[StepReport] = []
    training = make_training(model, draw_pairs(1, 12), learning_rate=3e-3, reports=reports)
    training = replace(training, plan=plan_of(model), ranks=ranks)
    training.fit.checkpointing = case.endswith("checkpointing")
    algorithm.train(training)
    if ranks.count > 1:
        unite(model, ranks)
    if ranks.leads:
        folder = out / case.replace(" ", "-")
        algorithm.save(model, folder)
        merged = algorithm.load(folder, lambda given: load_model(given or models / kind, CPU, precision))
        save_file({name: one.detach() for name, one in merged.named_parameters()}, out / f"{case}.safetensors")
    return {
        "reports": [asdict(report) for report in reports],
        "peaks": ranks.gather({stage: asdict(parts) for stage, parts in training.watch.peaks.items()}),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
    }


def main() -> None:
    """Go through all cases."""
    models, out = map(Path, sys.argv[1:])
    ranks = Ranks(int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0")))
    ranks.connect(CPU)
    found: dict[str, Any] = {}
    for case in CASES:
        found[case] = train(case, models, ranks, out)
        gc.collect()  # what is left of a case would be counted in the next
    if ranks.count > 1:
        found["killed"] = {case: break_off(case, models, ranks, out) for case in KILLED}
    if ranks.leads:
        (out / "found.json").write_text(json.dumps(found))
    ranks.part()


if __name__ == "__main__":
    main()
