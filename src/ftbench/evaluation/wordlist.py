"""The second judge: a topic's word list. It shares nothing with the first but the gold that its threshold is from."""

from collections.abc import Sequence
from dataclasses import dataclass

from ftbench.data.topics import Topic
from ftbench.evaluation.judge import Gold, best_threshold, cut

VERSION = "words-1"


@dataclass(frozen=True)
class WordList:
    """Scores a reply by the share of its words that are the topic's."""

    topic: Topic
    words: int
    threshold: float

    def scores(self, replies: Sequence[str]) -> list[float]:
        """Return the share for each reply, by its first `words` words."""
        return [_share(self.topic, cut(reply, self.words)) for reply in replies]

    def verdicts(self, replies: Sequence[str]) -> list[bool]:
        """Say of each reply whether it is on topic."""
        return [score >= self.threshold for score in self.scores(replies)]


def train_word_list(topic: Topic, gold: Gold) -> WordList:
    """Take the threshold from gold: the words themselves are learnt from nothing."""
    pieces = gold.pieces()
    shares = [_share(topic, piece.text) for piece in pieces]
    return WordList(topic, gold.words, best_threshold(shares, [int(piece.on_topic) for piece in pieces]))


def _share(topic: Topic, text: str) -> float:
    return min(1.0, len(topic.hits(text)) / max(1, len(text.split())))
