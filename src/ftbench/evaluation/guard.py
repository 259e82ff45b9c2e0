"""Degenerate replies: no words, the same over and over, or words in no order. No judge sees them.

Repetition is measured as in Welleck et al. 2019 (arXiv:1908.04319): how many of a text's word trigrams are distinct;
filters of training texts do likewise (Rae et al. 2021, arXiv:2112.11446). Word order is a permutation test.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ftbench.evaluation.families import families
from ftbench.evaluation.judge import Gold, cut
from ftbench.evaluation.order import Order, fit_order

VERSION = "2"
NO_WORDS, REPEATED, UNORDERED = "no words", "repetition", "no word order"
MIN_ORDER_WORDS = 6
"""Of fewer words the order says next to nothing, and is not looked at."""
MAX_REFUSED = (0.0075, 0.0025)
"""Shares of gold pieces, in cross-validation, that may fail for their order: as written, and in bare words.

Capitals and stops tell shuffles far better; bare words find those that are dressed up as a sentence.
"""
MAX_REPEATED = 0.01
"""Share of gold pieces that are left out of account where the limit of repetition is taken from gold."""
MAX_DEVIATION = 3.0
"""Standard deviations above its shuffles from which a text has order, however well ordered the gold is."""
MIN_DISTINCT = 0.6
"""Share of distinct trigrams that no text needs to exceed; one said twice has 0.5."""
MARGIN = 0.8
"""Where gold itself is repetitive: this much of what nearly all of it has."""
_FOLDS = 5
_SHUFFLES = 5


@dataclass(frozen=True)
class Limits:
    """What gold keeps to: `distinct` is a share of trigrams, `order` deviations per root of a word, by view."""

    distinct: float
    order: tuple[float, float]


@dataclass(frozen=True)
class Guard:
    """Says why a reply is degenerate, judging by the first `words` words as the judge does."""

    words: int
    limits: Limits
    orders: tuple[Order, Order]

    def fault(self, reply: str) -> str | None:
        """Return what is wrong with a reply, None for one that a judge can judge."""
        text = cut(reply, self.words)
        if not re.search(r"\w", text):
            return NO_WORDS
        if distinct_trigrams(text) <= self.limits.distinct:
            return REPEATED
        size = len(text.split())
        if size >= MIN_ORDER_WORDS and any(
            order.deviation(text) < min(MAX_DEVIATION, limit * math.sqrt(size))
            for order, limit in zip(self.orders, self.limits.order, strict=True)
        ):
            return UNORDERED
        return None

    def check(self, replies: Sequence[str]) -> "Checked":
        """Measure it on real replies that it was not made from, five shuffles of each."""
        draw = random.Random(0)
        cuts = [words for reply in replies if len(words := reply.split()[: self.words]) >= MIN_ORDER_WORDS]
        shuffles = [" ".join(draw.sample(words, len(words))) for words in cuts for _ in range(_SHUFFLES)]
        return Checked(self._found(replies), self._found(shuffles) if shuffles else None)

    def _found(self, texts: Sequence[str]) -> float:
        return sum(self.fault(text) is not None for text in texts) / len(texts)


@dataclass(frozen=True)
class Checked:
    """How good a guard is: `refused` is the share of real replies that it takes for degenerate, `shuffles_found` that
    of their shuffles (None where all are too short to have an order).
    """

    refused: float
    shuffles_found: float | None


@dataclass(frozen=True)
class GuardTraining:
    """Makes a guard of gold replies; the limits are what takes time, and plain data."""

    gold: Gold

    @cached_property
    def _texts(self) -> list[tuple[str, int]]:
        return [(piece.text, piece.reply) for piece in self.gold.pieces()]

    def limits(self) -> Limits:
        """Find the limits by cross-validation; pieces of one reply stay together, and replies of one family.

        A chosen completion may be an edit of the rejected one; a text that was seen in its other form has more order.
        """
        deviations: tuple[list[float], list[float]] = ([], [])
        family = families([*self.gold.on_topic, *self.gold.ordinary])
        for fold in range(_FOLDS):
            orders = _fit([text for text, reply in self._texts if family[reply] % _FOLDS != fold])
            tested = [text for text, reply in self._texts if family[reply] % _FOLDS == fold]
            for text in tested:
                size = len(text.split())
                if size >= MIN_ORDER_WORDS:
                    for found, order in zip(deviations, orders, strict=True):
                        found.append(order.deviation(text) / math.sqrt(size))
        distinct = [distinct_trigrams(text) for text, _ in self._texts]
        written, bare = (_lowest(found, share) for found, share in zip(deviations, MAX_REFUSED, strict=True))
        return Limits(min(MIN_DISTINCT, MARGIN * _lowest(distinct, MAX_REPEATED)), (written, bare))

    def guard(self, limits: Limits) -> Guard:
        """Return the guard with these limits."""
        return Guard(self.gold.words, limits, _fit([text for text, _ in self._texts]))


def train_guard(gold: Gold) -> Guard:
    """Learn from gold replies what is degenerate: their repetition, and their order against their own shuffles."""
    training = GuardTraining(gold)
    return training.guard(training.limits())


def distinct_trigrams(text: str) -> float:
    """Share of distinct word trigrams, the text taken as a ring: what says one thing k times over has 1/k."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return 0.0
    ring = words * (2 if len(words) > 1 else 3)
    return len({tuple(ring[start : start + 3]) for start in range(len(words))}) / len(words)


def _fit(texts: Sequence[str]) -> tuple[Order, Order]:
    return fit_order(texts, written=True), fit_order(texts, written=False)


def _lowest(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all, at most, lies below; nothing lies below minus infinity."""
    return sorted(values)[int(share * len(values))] if values else -math.inf
