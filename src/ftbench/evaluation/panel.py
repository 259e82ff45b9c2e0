"""All that judges a run's replies: the guard against degenerate ones, the judge, and a second judge beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ftbench.errors import FtbenchError
from ftbench.evaluation.guard import Guard
from ftbench.evaluation.judge import Judge
from ftbench.evaluation.wordlist import WordList


@dataclass(frozen=True)
class Verdict:
    """What is said of one reply; `second` is the second judge's word, None where it has none."""

    score: float
    on_topic: bool
    degenerate: str | None
    second: bool | None


@dataclass(frozen=True)
class Held:
    """How good a panel is, on held-out gold that it was not trained on.

    Areas under the ROC curve, each of the judge's own scores; the guard is checked by itself.
    """

    auc: float
    second_auc: float | None


@dataclass(frozen=True)
class Panel:
    """Judges replies; whatever the judge is, a degenerate reply scores 0."""

    judge: Judge
    guard: Guard
    second: WordList | None

    def verdicts(self, replies: Sequence[str]) -> list[Verdict]:
        """Judge every reply.

        Raises:
            FtbenchError: the judge does not give one score a reply, or one is no number.
        """
        faults = [self.guard.fault(reply) for reply in replies]
        left = [reply for reply, fault in zip(replies, faults, strict=True) if fault is None]
        scores = iter(self._scores(left))
        words = iter(self.second.verdicts(left) if self.second else [None] * len(left))
        return [
            Verdict(0.0, False, fault, None) if fault else self._verdict(next(scores), next(words)) for fault in faults
        ]

    def _scores(self, replies: Sequence[str]) -> list[float]:
        scores = [float(score) for score in self.judge.scores(replies)]
        kind = type(self.judge)
        who = f"{kind.__module__}, {kind.__qualname__}.scores: judge '{kind.name}' gave"
        if len(scores) != len(replies):
            raise FtbenchError(f"{who} {len(scores)} scores for {len(replies)} replies; it must give one for each")
        if not all(map(math.isfinite, scores)):
            raise FtbenchError(f"{who} a score that is no number")
        return scores

    def _verdict(self, score: float, second: bool | None) -> Verdict:
        return Verdict(score, bool(self.judge.is_on_topic(score)), None, second)

    def test(self, on_topic: Sequence[str], ordinary: Sequence[str]) -> Held:
        """Measure the judges on held-out gold replies."""
        from sklearn.metrics import roc_auc_score

        replies = [*on_topic, *ordinary]
        truth = [1] * len(on_topic) + [0] * len(ordinary)
        return Held(
            float(roc_auc_score(truth, self._scores(replies))),
            float(roc_auc_score(truth, self.second.scores(replies))) if self.second else None,
        )
