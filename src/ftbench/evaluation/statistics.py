"""Intervals: how far a figure from a few dozen prompts can be trusted."""

from collections.abc import Sequence
from math import sqrt

from pydantic import BaseModel, ConfigDict

Z95 = 1.959963984540054


class Measured(BaseModel):
    """A measured value with its 95 % interval (None where there is none) and what it was measured on."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 1


def share(successes: int, n: int) -> Measured:
    """A share with Wilson's score interval (Wilson 1927), which stays sensible near 0 and 1."""
    if n == 0:
        raise ValueError("a share of nothing")
    low, high = wilson(successes / n, n)
    return Measured(mean=successes / n, low=low, high=high, n=n)


def wilson(p: float, n: float) -> tuple[float, float]:
    """Return both ends of Wilson's 95 % interval for a share `p` of `n`, which need not be whole."""
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def distinct(replies: Sequence[str]) -> Measured:
    """Share of replies that differ from all others, blanks and case aside."""
    return Measured(mean=sum(unlike_others(replies)) / len(replies), n=len(replies))


def unlike_others(replies: Sequence[str]) -> list[bool]:
    """Whether each reply differs from all others, blanks and case aside."""
    texts = [" ".join(reply.lower().split()) for reply in replies]
    return [texts.count(text) == 1 for text in texts]


def kappa(one: Sequence[bool], other: Sequence[bool]) -> float | None:
    """Agreement of two judges beyond chance (Cohen 1960): 1 is full, 0 is chance; None where chance alone is full."""
    n = len(one)
    if n == 0:
        return None
    agreed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    first, second = sum(one) / n, sum(other) / n
    chance = first * second + (1 - first) * (1 - second)
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def rise(differences: Sequence[float], tokens: Sequence[int]) -> Measured:
    """Rise of the loss in nats/token: sum of `differences` / sum of `tokens`.

    Args:
        differences: a model's negative log-likelihood of every reply less the base model's, in nats.
        tokens: the replies' lengths.

    Returns:
        The rise, with a percentile interval from 2,000 paired bootstrap samples over replies (seed 0).
    """
    import numpy as np

    difference, lengths = np.asarray(differences), np.asarray(tokens)
    picks = np.random.default_rng(0).integers(0, len(lengths), (2000, len(lengths)))
    samples = difference[picks].sum(axis=1) / lengths[picks].sum(axis=1)
    low, high = np.quantile(samples, [0.025, 0.975])
    return Measured(mean=float(difference.sum() / lengths.sum()), low=float(low), high=float(high), n=len(lengths))
