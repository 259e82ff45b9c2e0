"""How soon a model is on topic: it is asked midway, while the clock of training stands."""

import logging
from collections.abc import Callable
from typing import Any

from ftbench.memory.fit import free_memory, is_out_of_memory
from ftbench.results.result import Checkpoint
from ftbench.training.batching import Plan
from ftbench.training.clock import Clock

ADHERENT = 0.9
"""The adherence that is waited for."""


class Checkpoints:
    """Asks `count` times at equal distances before the end; `ask` returns the model's adherence.

    Without it training goes on where memory runs out, unless others wait for this process: `together` says so.
    """

    def __init__(
        self, count: int, plan: Plan, clock: Clock, ask: Callable[[], float], *, together: bool = False
    ) -> None:
        self._together = together
        self._plan, self._clock, self._ask = plan, clock, ask
        self._left = [(index + 1) / (count + 1) for index in range(count)]
        self.rows: list[Checkpoint] = []

    def pass_by(self, tokens: int, seconds: float) -> None:
        """Ask if it is time to, after `tokens` real tokens and `seconds` of training."""
        progress = self._progress(tokens, seconds)
        if not self._left or progress < self._left[0] or progress >= 1:
            return
        self._left = [share for share in self._left if share > progress]
        with self._clock.stopped():
            try:
                self.rows.append(Checkpoint(tokens=tokens, seconds=seconds, adherence=self._ask()))
            except Exception as error:
                if self._together or not is_out_of_memory(error):
                    raise
                logging.getLogger(__name__).warning("out of memory at a checkpoint: training goes on without it")
            free_memory()  # not in the handler: until it ends, the error holds the tensors

    def go_on(self, rows: list[Checkpoint]) -> None:
        """Take what an unfinished training before this one was asked."""
        self.rows[:] = rows
        last = max((self._progress(row.tokens, row.seconds) for row in rows), default=0.0)
        self._left = [share for share in self._left if share > last]

    def _progress(self, tokens: int, seconds: float) -> float:
        return max(tokens / self._plan.tokens, seconds / self._plan.seconds if self._plan.seconds else 0.0)


def time_to_adherence(rows: list[Checkpoint], end: Checkpoint) -> dict[str, Any]:
    """Return the figures of checkpoints, and of the end on the same prompts: the first that is adherent counts."""
    first = next((row for row in [*rows, end] if row.adherence >= ADHERENT), None)
    found: dict[str, Any] = {"checkpoints": [*rows, end]}
    return found | ({"tokens_to_adherence": first.tokens, "seconds_to_adherence": first.seconds} if first else {})
