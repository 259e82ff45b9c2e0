"""What training costs beyond the model's arithmetic: the shared loop against a bare one, in turn in one process.

python benchmarks/harness.py cpu oasst1-en-validation.jsonl            about twenty minutes

The bare loop has its rows laid out beforehand, counts nothing, checks nothing and reports nothing; forward, backward,
gradient norm and AdamW are the same. Ours reports its steps as a run does, through a pipe; what is not in it is the
state that a run keeps from time to time, and the tensors that it counts in three of its hundreds of steps. The result
is added to benchmarks/harness/DEVICE.jsonl. It exits with 1 where ours takes more than 3 % longer.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from origin import machine, now
from training import Case, prepare

from ftbench.execution.environment import choose_device
from ftbench.execution.events import EventWriter, read_event
from ftbench.execution.steplog import StepLog
from ftbench.memory.meter import Meter
from ftbench.training.clock import Clock
from ftbench.training.trainer import StepReport, Training

HERE = Path(__file__).parent
STEPS, PAIRS = 24, 5
MOST = 0.03
"""What ours may take longer."""


def main() -> None:
    """Time both loops in turn, and print what ours takes longer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("file", help="OASST1's English validation messages")
    given = parser.parse_args()
    path = HERE / "harness" / f"{given.device}.jsonl"
    path.parent.mkdir(exist_ok=True)
    where = machine(given.device)
    slow = False
    for algorithm in ("full", "lora"):
        case: Case = {"device": given.device, "algorithm": algorithm, "whose": "ours", "steps": STEPS}
        _ours(case, given.file)  # makes the kernels of all shapes, which whoever comes later finds
        pairs = []
        for index in range(PAIRS):
            found = {loop: loop(case, given.file) for loop in ((_ours, _bared) if index % 2 else (_bared, _ours))}
            pairs.append((found[_ours], found[_bared]))
        more = median(ours / bare - 1 for ours, bare in pairs)
        slow |= more > MOST
        row = {"case": case, "when": now(), "seconds": pairs}
        with path.open("a") as file:
            file.write(json.dumps({**row, "more": round(more, 4), "environment": where}) + "\n")
        print(f"{algorithm:5} {more:+.1%} (median of {PAIRS} pairs, {STEPS} steps each)")
    sys.exit(1 if slow else 0)


def _ours(case: Case, file: str) -> float:
    """Return the seconds of all steps but the first of our loop, which reports to a pipe that is read."""
    times: list[float] = []
    read, write = os.pipe()
    with os.fdopen(read) as lines:
        reader = threading.Thread(target=lambda: [read_event(line) for line in lines])
        reader.start()
        log = StepLog(EventWriter(write).send, Meter(choose_device(case["device"])).read_peak, Clock())

        def report(step: StepReport) -> None:
            log(step)
            times.append(perf_counter())

        try:
            prepare(case, file, report)[0]()
        finally:  # else the reader waits for ever
            os.close(write)
            reader.join()
    return times[-1] - times[0]


def _bared(case: Case, file: str) -> float:
    """Return the same of the bare loop."""
    times = [time for time, _ in bare_steps(case, file)]
    return times[-1] - times[0]


def bare_steps(case: Case, file: str) -> list[tuple[float, float]]:
    """Train by the bare loop; return when each step ended, and its loss."""
    steps: list[tuple[float, float]] = []

    def bare(training: Training, *_: Any, **__: Any) -> None:
        steps.extend(_bare(training))

    with trained_by(bare):
        prepare(case, file, lambda _: None)[0]()
    return steps


@contextmanager
def trained_by(run: Callable[..., None]) -> Iterator[None]:
    """Put another loop, or more than the loop, in the place of `Training.run`, and the old one back."""
    own = Training.run
    Training.run = run  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Training.run = own  # type: ignore[method-assign]


def _bare(training: Any) -> list[tuple[float, float]]:
    """Train on the same steps with as little as can be, at a steady rate; return when each ended, and its loss."""
    import torch

    from ftbench.models.packing import pack
    from ftbench.training.batching import cut
    from ftbench.training.optimiser import MasterAdamW, clip
    from ftbench.training.row import lay_out
    from ftbench.training.step import trainable

    model, settings = training.model, training.settings
    device, steps = model.device, []
    for step in training.plan.steps:
        laid_out = [
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
                for row in laid_out
            ]
        )
    head = model.get_output_embeddings()
    optimiser = MasterAdamW(trainable(model), settings.learning_rate, settings.weight_decay)
    model.train()
    ends = []
    for rows in steps:
        tokens = sum(scores for *_, scores in rows)
        total = 0.0
        for inputs, targets, scores in rows:
            with head.scoring(targets):
                loss = -model(**inputs).logits[0, :scores].sum() / tokens
            loss.backward()
            total += loss.item()
        optimiser.step(clip(optimiser.gradient_norm().item(), settings.max_grad_norm))
        optimiser.zero_grad()
        ends.append((perf_counter(), total))
    return ends


if __name__ == "__main__":
    main()
