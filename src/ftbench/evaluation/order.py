"""Word order: are a text's neighbours neighbours more than in shuffles of its own words?"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COMMON = 400
"""So many of the commonest words stand for themselves; the others by their ending."""
MIN_ENDING = 5
"""An ending that was seen less often tells nothing."""
SHUFFLES = 400
FINE_PRIOR, COARSE_PRIOR = 2.0, 5.0
"""Neighbours whose chance is taken for granted beside those counted, for words and for endings."""
SECOND_NEXT = 0.5
"""Weight of a word's second-next neighbour."""

_TOKEN = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)


@dataclass(frozen=True)
class Token:
    """A word as the next one sees it, and as the one before does: from fine (the word) to coarse (its marks alone)."""

    to_next: tuple[str, str, str]
    to_former: tuple[str, str, str]


_START = Token(("^", "^", "^"), ("^", "^", "^"))

Read = Callable[[str], list[Token]]


def fit_order(texts: Sequence[str], *, written: bool) -> "Order":
    """Count neighbours in texts.

    Args:
        texts: gold texts.
        written: whether punctuation and capitals count, or the words alone.
    """
    counted = Counter(word for text in texts for _, word, _ in _split(text, written))
    common = frozenset(sorted(counted, key=lambda word: (-counted[word], word))[:COMMON])
    endings = Counter[str]()
    for word, times in counted.items():
        endings[_ending(word)] += times
    known = frozenset(ending for ending, times in endings.items() if times >= MIN_ENDING)

    def read(text: str, marked: bool = written) -> list[Token]:
        tokens = [_START]
        for before, word, after in _split(text, written):
            coarse = _ending(word) if _ending(word) in known else "-"
            fine = word if word in common else coarse
            after, before = (after, before) if marked else ("", "")
            to_next = (f"{fine} {after}", f"{coarse} {after}", f"  {after}")
            tokens.append(Token(to_next, (f"{before} {fine}", f"{before} {coarse}", f"{before}  ")))
        return tokens

    def read_plain(text: str) -> list[Token]:
        return read(text, marked=False)

    next_ones = Neighbours.count(map(read, texts), 1)
    second_next = Neighbours.count(map(read_plain, texts), 2)
    return Order(((1.0, read, next_ones), (SECOND_NEXT, read_plain, second_next)))


@dataclass(frozen=True)
class Order:
    """Scores a text's order; each part has a weight, a way to read texts, and the neighbours that were counted."""

    parts: tuple[tuple[float, Read, "Neighbours"], ...]

    def deviation(self, text: str) -> float:
        """Return by how many standard deviations a text's words stand in better order than in 400 of its shuffles.

        Of a text whose words stand in any order this is about standard normal, whatever its words are.
        """
        import numpy as np

        size = len(text.split())
        if size < 2:
            return 0.0
        orders = _shuffles(size)
        totals = np.zeros(len(orders))
        for weight, read, neighbours in self.parts:
            ratios = neighbours.ratios(read(text))
            totals += weight * ratios[orders[:, : -neighbours.distance], orders[:, neighbours.distance :]].sum(axis=1)
        spread = float(totals[1:].std())
        return float(totals[0] - totals[1:].mean()) / spread if spread > 1e-9 else 0.0


@lru_cache(maxsize=256)
def _shuffles(size: int) -> "NDArray[np.int64]":
    """Return the words' places as they stand, and 400 shuffles of them, the start always first."""
    import numpy as np

    draw = np.random.default_rng(0)
    drawn = [np.arange(size), *(draw.permutation(size) for _ in range(SHUFFLES))]
    return np.array([[0, *(places + 1)] for places in drawn])


@dataclass(frozen=True)
class Neighbours:
    """How often one name was seen before another, at a distance; of names never seen, row and column 0 are empty.

    `pairs` is a sparse matrix [names to the left, names to the right]; `left` and `right` count the names themselves
    among `total` words.
    """

    distance: int
    left_ids: dict[str, int]
    right_ids: dict[str, int]
    pairs: Any
    left: "NDArray[np.float64]"
    right: "NDArray[np.float64]"
    total: int

    @classmethod
    def count(cls, texts: Iterable[list[Token]], distance: int) -> "Neighbours":
        """Count the pairs in texts, each of which begins with its start."""
        import numpy as np
        from scipy.sparse import csr_matrix

        pairs, left, right = Counter[tuple[str, str]](), Counter[str](), Counter[str]()
        total = 0
        for tokens in texts:
            total += len(tokens) - 1
            left.update(name for token in tokens for name in dict.fromkeys(token.to_next))
            right.update(name for token in tokens[1:] for name in dict.fromkeys(token.to_former))
            for one, other in zip(tokens, tokens[distance:], strict=False):
                pairs.update({(before, after) for before in one.to_next for after in other.to_former})
        left_ids, right_ids = ({name: place for place, name in enumerate(names, 1)} for names in (left, right))
        rows, columns = [left_ids[one] for one, _ in pairs], [right_ids[other] for _, other in pairs]
        shape = (len(left_ids) + 1, len(right_ids) + 1)
        counts = csr_matrix((np.array(list(pairs.values()), float), (rows, columns)), shape)
        occurring = [np.array([0.0, *names.values()]) for names in (left, right)]
        return cls(distance, left_ids, right_ids, counts, occurring[0], occurring[1], max(1, total))

    def ratios(self, tokens: Sequence[Token]) -> "NDArray[np.float64]":
        """Return [one, other]: log(how often the pair was seen / how often chance would put it so).

        A pair of words that is seldom seen leans on how each goes with the other's ending, these on the two endings,
        and these on the marks alone.
        """
        import numpy as np

        size = len(tokens)
        rows = [self.left_ids.get(token.to_next[level], 0) for level in range(3) for token in tokens]
        columns = [self.right_ids.get(token.to_former[level], 0) for level in range(3) for token in tokens]
        pairs = self.pairs[rows][:, columns].toarray().reshape(3, size, 3, size)
        chance = np.outer(self.left[rows], self.right[columns]).reshape(3, size, 3, size) / self.total

        def seen(one: int, other: int, prior: Any, strength: float) -> Any:
            return (pairs[one, :, other] + strength * prior) / (chance[one, :, other] + strength)

        marks = seen(2, 2, 1.0, COARSE_PRIOR)
        endings = seen(1, 1, marks, COARSE_PRIOR)
        mixed = seen(0, 1, endings, COARSE_PRIOR) * seen(1, 0, endings, COARSE_PRIOR)
        ratios: NDArray[np.float64] = np.log(seen(0, 0, np.sqrt(mixed), FINE_PRIOR))
        return ratios


def _split(text: str, written: bool) -> list[tuple[str, str, str]]:
    """Return each word in lower case, with what stands before it (quote, capital) and behind it (kind of stop)."""
    found = []
    for token in text.split():
        match = _TOKEN.fullmatch(token)
        assert match is not None
        before, word, after = match.groups()
        capital = "A" if word[:1].isupper() else "a"
        found.append(
            (("'" if before else "") + capital, word.lower(), _stop(after)) if written else ("", word.lower(), "")
        )
    return found


def _stop(after: str) -> str:
    if not after:
        return ""
    return "." if any(mark in ".!?" for mark in after) else "," if after[0] in ",;:" else "'"


def _ending(word: str) -> str:
    if not word:
        return "#"
    return "0" if word[0].isdigit() else f"-{word[-2:]}" if word.isalpha() else "x"
