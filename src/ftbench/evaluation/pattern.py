"""The judge of the style task: a regular expression, which learns nothing."""

from collections.abc import Sequence
from typing import Self

from ftbench.data.styles import find_style
from ftbench.evaluation.judge import Gold, Judge


class StyleJudge(Judge):
    """Gives 1 to a reply that is in the style as a whole, and 0 to any other."""

    name = "style"
    version = "1"
    threshold = 0.5

    def __init__(self, style: str) -> None:
        self._style = find_style(style)

    @classmethod
    def train(cls, gold: Gold) -> Self:
        """Take the style that the task is about."""
        return cls(gold.topic)

    def scores(self, replies: Sequence[str]) -> list[float]:
        """Return 1 or 0 for each reply."""
        return [float(self._style.fits(reply)) for reply in replies]
