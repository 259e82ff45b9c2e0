"""What training costs beyond the model's arithmetic: the shared loop against a bare one, step by step in one process.

python benchmarks/harness.py cpu oasst1-en-validation.jsonl            about twenty minutes

The bare loop has its rows laid out beforehand, counts nothing, checks nothing and reports nothing; forward, backward,
gradient norm and AdamW are the same. Ours reports its steps as a run does, through a pipe; what is not in it is the
state that a run keeps from time to time, and the tensors that it counts in three of its hundreds of steps. The two, a
thread each, take turns: each makes a step while the other waits, so that what else the machine does meets both. Who
meets a shape first makes its kernels: a first round is not counted, and who goes first changes from round to round. The
result, a pair of seconds a step, is added to benchmarks/harness/DEVICE.jsonl. It exits with 1 where ours takes more
than 3 % longer.
"""

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
STEPS, ROUNDS = 24, 2
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
        in_turn(case, given.file)
        pairs = [pair for index in range(ROUNDS) for pair in in_turn(case, given.file, bare_first=index % 2 == 0)]
        more = median(ours / bare - 1 for ours, bare in pairs)
        low, high = _interval([ours / bare - 1 for ours, bare in pairs])
        slow |= more > MOST
        row = {"case": case, "when": now(), "seconds": pairs}
        with path.open("a") as file:
            file.write(json.dumps({**row, "more": round(more, 4), "environment": where}) + "\n")
        print(
            f"{algorithm:5} {more:+.1%} [{low:+.1%}, {high:+.1%}] (median of {len(pairs)} pairs of steps)", flush=True
        )
    sys.exit(1 if slow else 0)


def _interval(values: list[float]) -> tuple[float, float]:
    """Return what holds the median 95 times of 100, by the ranks of the values (a binomial's, as a normal one)."""
    ordered, aside = sorted(values), 0.98 * len(values) ** 0.5
    low, high = int(len(values) / 2 - aside), int(len(values) / 2 + aside)
    return ordered[max(low, 0)], ordered[min(high, len(values) - 1)]


class Turn:
    """The seconds of a loop's steps, during each of which the other loop waits."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.other = self
        self._mine, self._over = threading.Event(), False
        self._began = 0.0

    def wait(self) -> None:
        """Wait for the other's step to end, unless it makes none any more."""
        while not self._mine.wait(1.0) and not self.other._over:
            pass
        self._began = perf_counter()

    def pass_on(self) -> None:
        """Let the other loop make a step."""
        self._mine.clear()
        self.other._mine.set()

    def end_step(self) -> None:
        """Note what the step took, and make the next when the other has made one."""
        self.seconds.append(perf_counter() - self._began)
        self.pass_on()
        self.wait()

    def leave(self) -> None:
        """Make no step any more."""
        self._over = True
        self.pass_on()


def in_turn(case: Case, file: str, *, bare_first: bool = False) -> list[tuple[float, float]]:
    """Return the seconds of each step but the first, by our loop and by the bare one."""
    ours, bare = Turn(), Turn()
    ours.other, bare.other = bare, ours
    own = Training.run
    bare_threads: list[int] = []

    def run(training: Training, *given: Any, **more: Any) -> Any:
        if threading.get_ident() in bare_threads:
            return _bare(training, bare.end_step)
        return own(training, *given, **more)

    def work(turn: Turn) -> None:
        turn.wait()
        try:
            if turn is bare:
                bare_threads.append(threading.get_ident())
                prepare(case, file, lambda _: None)[0]()
            else:
                _report_to_pipe(case, file, turn)
        finally:
            turn.leave()

    with trained_by(run), ThreadPoolExecutor(2) as pool:
        works = [pool.submit(work, turn) for turn in (ours, bare)]
        (ours if bare_first else bare).pass_on()
    for one in works:
        one.result()
    return list(zip(ours.seconds, bare.seconds, strict=True))[1:]


def _report_to_pipe(case: Case, file: str, turn: Turn) -> None:
    """Train by our loop, whose steps are told as a run tells them, and read."""
    read, write = os.pipe()
    with os.fdopen(read) as lines:
        reader = threading.Thread(target=lambda: [read_event(line) for line in lines])
        reader.start()
        log = StepLog(EventWriter(write).send, Meter(choose_device(case["device"])).read_peak, Clock())

        def report(step: StepReport) -> None:
            log(step)
            turn.end_step()

        try:
            prepare(case, file, report)[0]()
        finally:  # else the reader waits for ever
            os.close(write)
            reader.join()


def bare_losses(case: Case, file: str) -> list[float]:
    """Train by the bare loop; return each step's loss."""
    losses: list[float] = []
    with trained_by(lambda training, *_, **__: losses.extend(_bare(training))):
        prepare(case, file, lambda _: None)[0]()
    return losses


@contextmanager
def trained_by(run: Callable[..., None]) -> Iterator[None]:
    """Put another loop, or more than the loop, in the place of `Training.run`, and the old one back."""
    own = Training.run
    Training.run = run  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Training.run = own  # type: ignore[method-assign]


def _bare(training: Any, end_step: Callable[[], None] = lambda: None) -> list[float]:
    """Train on the same steps with as little as can be, at a steady rate; return each one's loss."""
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
    losses = []
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
        losses.append(total)
        end_step()
    return losses


if __name__ == "__main__":
    main()
