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
    p = successes / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    return Measured(mean=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), n=n)


def distinct(replies: Sequence[str]) -> Measured:
    """Share of replies that differ from all others, blanks and case aside."""
    texts = [" ".join(reply.lower().split()) for reply in replies]
    return Measured(mean=sum(texts.count(text) == 1 for text in texts) / len(texts), n=len(texts))


def kappa(one: Sequence[bool], other: Sequence[bool]) -> float | None:
    """Agreement of two judges beyond chance (Cohen 1960): 1 is full, 0 is chance; None where chance alone is full."""
    n = len(one)
    if n == 0:
        return None
    agreed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    first, second = sum(one) / n, sum(other) / n
    chance = first * second + (1 - first) * (1 - second)
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def rise(nll: Sequence[float], base_nll: Sequence[float], tokens: Sequence[int]) -> Measured:
    """Rise of the loss in nats/token: (sum of `nll` - sum of `base_nll`) / sum of `tokens`.

    Args:
        nll: negative log-likelihood of every reply, in nats.
        base_nll: the base model's, of the same replies.
        tokens: their lengths.

    Returns:
        The rise, with a percentile interval from 2,000 paired bootstrap samples over replies (seed 0).
    """
    import numpy as np

    difference, lengths = np.asarray(nll) - np.asarray(base_nll), np.asarray(tokens)
    picks = np.random.default_rng(0).integers(0, len(lengths), (2000, len(lengths)))
    samples = difference[picks].sum(axis=1) / lengths[picks].sum(axis=1)
    low, high = np.quantile(samples, [0.025, 0.975])
    return Measured(mean=float(difference.sum() / lengths.sum()), low=float(low), high=float(high), n=len(lengths))
