"""What training costs beyond the model's arithmetic: the shared loop against a bare one, in turn in one process.

python benchmarks/harness.py cpu oasst1-en-validation.jsonl            about twenty minutes

The bare loop has its rows laid out beforehand, counts nothing, checks nothing and reports nothing; forward, backward,
gradient norm and AdamW are the same. The result is added to benchmarks/harness/DEVICE.jsonl.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from training import Case, prepare

HERE = Path(__file__).parent
STEPS, PAIRS = 24, 5


def main() -> None:
    """Time both loops in turn, and print what ours takes longer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("file", help="OASST1's English validation messages")
    given = parser.parse_args()
    path = HERE / "harness" / f"{given.device}.jsonl"
    path.parent.mkdir(exist_ok=True)
    for algorithm in ("full", "lora"):
        case: Case = {"device": given.device, "algorithm": algorithm, "whose": "ours", "steps": STEPS}
        pairs = [_pair(case, given.file) for _ in range(PAIRS)]
        more = median(ours / bare - 1 for ours, bare in pairs)
        with path.open("a") as file:
            file.write(json.dumps({"case": case, "seconds": pairs, "more": round(more, 4)}) + "\n")
        print(f"{algorithm:5} {more:+.1%} (median of {PAIRS} pairs, {STEPS} steps each)")


def _pair(case: Case, file: str) -> tuple[float, float]:
    """Return the seconds of all steps but the first, of our loop and of the bare one."""
    from ftbench.training.trainer import Training

    times: list[float] = []

    def bare(training: Training, *_: Any, **__: Any) -> None:
        times.extend(_bare(training))

    prepare(case, file, lambda _: times.append(perf_counter()))[0]()
    ours = times[-1] - times[0]
    times.clear()
    run = Training.run
    Training.run = bare  # type: ignore[method-assign, assignment]
    try:
        prepare(case, file, lambda _: None)[0]()
    finally:
        Training.run = run  # type: ignore[method-assign]
    return ours, times[-1] - times[0]


def _bare(training: Any) -> Sequence[float]:
    """Train on the same steps with as little as can be; return when each ended."""
    import torch

    from ftbench.models.packing import pack
    from ftbench.training.batching import cut
    from ftbench.training.optimiser import MasterAdamW, clip
    from ftbench.training.row import lay_out
    from ftbench.training.step import trainable

    model, settings = training.model, training.settings
    device, steps = model.device, []
    for step in training.plan.steps:
        rows = [
            lay_out([example.chosen for example in batch])
            for batch in cut(step.examples, training.fit.micro_batch_tokens)
        ]
        steps.append(
            [
                (
                    {
                        "input_ids": torch.tensor([row.ids], device=device),
                        "logits_to_keep": torch.tensor(row.predicting, device=device),
                        "use_cache": False,
                        **pack(row.blocks, device),
                    },
                    torch.tensor(row.targets, device=device),
                    row.scores,
                )
                for row in rows
            ]
        )
    head = model.get_output_embeddings()
    optimiser = MasterAdamW(trainable(model), settings.learning_rate, settings.weight_decay)
    model.train()
    ends = []
    for rows in steps:
        tokens = sum(scores for *_, scores in rows)
        for inputs, targets, scores in rows:
            with head.scoring(targets):
                (-model(**inputs).logits[0, :scores].sum() / tokens).backward()
        optimiser.step(clip(optimiser.gradient_norm().item(), settings.max_grad_norm))
        optimiser.zero_grad()
        ends.append(perf_counter())
    return ends


if __name__ == "__main__":
    main()
