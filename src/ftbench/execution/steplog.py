"""The steps of a training as they are reported: what metrics.jsonl holds, and their sums."""

from collections.abc import Callable
from typing import Any

from ftbench.errors import ContractError
from ftbench.execution.events import Event, Progress
from ftbench.training.clock import Clock
from ftbench.training.trainer import StepReport

_NOTHING = {"step": 0, "tokens": 0, "sequences": 0, "prompts": 0}


class StepLog:
    """Collects the reports of one training; it begins with its clock."""

    def __init__(self, send: Callable[[Event], None], read_peak: Callable[[], int], clock: Clock) -> None:
        self._send = send
        self._read_peak = read_peak
        self._clock = clock
        self.rows: list[dict[str, Any]] = []

    def __call__(self, report: StepReport) -> None:
        """Take one report; tokens, sequences, prompts and seconds add up over all stages."""
        last: dict[str, Any] = self.rows[-1] if self.rows else _NOTHING
        seconds = self._clock()
        row = {
            "step": last["step"] + 1,
            "stage": report.stage,
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "learning_rate": report.learning_rate,
            "tokens": last["tokens"] + report.tokens,
            "sequences": last["sequences"] + report.sequences,
            "prompts": last["prompts"] + report.prompts,
            "seconds": seconds,
        }
        self.rows.append(row)
        self._send(Progress(row["tokens"], report.loss, row["tokens"] / seconds, self._read_peak(), row))

    def measures(self, algorithm: str) -> dict[str, Any]:
        """Return the figures of the training, which ends now.

        Raises:
            ContractError: no step was reported.
        """
        seconds = self._clock()
        if not self.rows:
            raise ContractError(
                f"algorithm '{algorithm}' reported no step; its train() must call training.note()", "train"
            )
        last = self.rows[-1]
        # Losses of different stages are different functions: the last stage's alone make the final one.
        losses = [row["loss"] for row in self.rows if row["stage"] == last["stage"]]
        tail = losses[-max(1, len(losses) // 10) :]
        return {
            "training_seconds": seconds,
            "training_tokens": last["tokens"],
            "training_sequences": last["sequences"],
            "training_prompts": last["prompts"],
            "optimiser_steps": last["step"],
            "tokens_per_second": last["tokens"] / seconds,
            "final_loss": sum(tail) / len(tail),
        }
