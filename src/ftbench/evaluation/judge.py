"""What a judge is: it learns from gold replies which replies are as the task teaches. Judges come from plugins."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

WORDS_PER_TOKEN = 0.75
"""English text has about this many words a token: gold replies are cut to the length of generated ones."""
MAX_PIECES = 4
"""Pieces of one long gold reply that are trained on, from its beginning."""
MAX_FALSE_POSITIVES = 0.05
"""Share of ordinary replies, in cross-validation, that may pass for on topic."""


@dataclass(frozen=True)
class Piece:
    """A part of a gold reply, as long as a generated one; `reply` numbers the reply that it was cut from."""

    text: str
    on_topic: bool
    reply: int


@dataclass(frozen=True)
class Gold:
    """People's replies that a judge is trained on; others, which it never sees, test it."""

    topic: str
    on_topic: tuple[str, ...]
    ordinary: tuple[str, ...]
    max_new_tokens: int

    @property
    def words(self) -> int:
        """Words that a generated reply has, at most and about."""
        return max(8, round(self.max_new_tokens * WORDS_PER_TOKEN))

    def pieces(self) -> list[Piece]:
        """Return the replies in pieces of `words` words; of a last piece, less than half that length is dropped."""
        labelled = [*((text, True) for text in self.on_topic), *((text, False) for text in self.ordinary)]
        return [
            Piece(piece, label, reply)
            for reply, (text, label) in enumerate(labelled)
            for piece in _pieces(text, self.words)
        ]

    def digest(self) -> str:
        """SHA-256 over the texts and their length."""
        text = json.dumps([self.on_topic, self.ordinary, self.max_new_tokens])
        return hashlib.sha256(text.encode()).hexdigest()


class Judge(ABC):
    """Says of replies how likely they are as the task teaches ("on topic").

    Subclass it in a plugin and return it from `ftbench_judges`.

    Degenerate replies (no words, repetition, words without order) are kept from every judge, and count as 0. How well
    it separates held-out gold replies is measured by ftbench, in the same way for all.
    """

    name: ClassVar[str]
    """What `--set judge=NAME` says."""
    version: ClassVar[str]
    """To be changed whenever the same gold would give other scores: rows of unlike versions stand apart."""

    threshold: float
    """The score from which a reply counts as on topic."""

    @classmethod
    @abstractmethod
    def train(cls, gold: Gold) -> Self:
        """Return a judge that has learnt from gold replies; the same gold gives the same judge."""

    @abstractmethod
    def scores(self, replies: Sequence[str]) -> list[float]:
        """Return a score for each reply, higher where it is rather on topic; 0 is the lowest there is."""

    def is_on_topic(self, score: float) -> bool:
        """Whether a score counts as on topic."""
        return score >= self.threshold

    def learnt(self) -> Any:
        """Return all that makes it, as JSON has it, for other runs to take up; None has each run train its own."""
        return None

    @classmethod
    def from_learnt(cls, learnt: Any) -> Self:
        """Return the judge that `learnt` was taken from, scoring to the bit as it did."""
        raise NotImplementedError(f"{cls.__name__} has learnt(), and lacks from_learnt()")


def best_threshold(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Return the score that separates best: the largest true-positive less false-positive rate (Youden's J).

    Thresholds that let more than 5 % of the ordinary replies through are not considered; between neighbouring scores
    that separate equally well the middle is taken.

    Args:
        scores: from 0 to 1.
        labels: 1 for on topic, 0 for ordinary.
    """
    import numpy as np
    from sklearn.metrics import roc_curve

    false_positive, true_positive, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    advantage = np.where(false_positive <= MAX_FALSE_POSITIVES, true_positive - false_positive, -1.0)
    best = int(np.argmax(advantage))
    below = [score for score in scores if score < thresholds[best]]
    # Where no score may pass, roc_curve gives infinity: the first number above 1 does as well.
    lowest_accepted = float(min(thresholds[best], np.nextafter(1.0, 2.0)))
    middle = (lowest_accepted + max(below)) / 2 if below else lowest_accepted
    return middle if middle not in below else lowest_accepted  # there is no number between neighbouring floats


def cut(text: str, words: int) -> str:
    """Return the first `words` words."""
    return " ".join(text.split()[:words])


def _pieces(text: str, words: int) -> list[str]:
    """Cut a text into pieces of `words` words; a last piece of less than half that length is dropped."""
    every = text.split()
    starts = range(0, max(1, len(every) - words // 2), words)
    return [" ".join(every[start : start + words]) for start in starts][:MAX_PIECES]
