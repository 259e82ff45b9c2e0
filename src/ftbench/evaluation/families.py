"""Texts that are edits of each other, so that cross-validation keeps them together."""

import re
from collections.abc import Sequence

SHARED = 0.5
"""Share of the shorter text's word trigrams that makes two texts one family."""


def families(texts: Sequence[str]) -> list[int]:
    """Return a number for each text; texts that say the same in two forms, and what hangs together by such, have one.

    Capitals and punctuation make no difference.
    """
    import numpy as np
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import CountVectorizer

    if not texts:
        return []
    seen = CountVectorizer(analyzer=_trigrams, binary=True).fit_transform(texts).astype(np.float32)
    shared = (seen @ seen.T).tocoo()
    sizes = np.asarray(seen.sum(axis=1)).ravel()
    alike = shared.data > SHARED * np.minimum(sizes[shared.row], sizes[shared.col])
    edges = csr_matrix((shared.data[alike], (shared.row[alike], shared.col[alike])), shared.shape)
    return [int(number) for number in connected_components(edges, directed=False)[1]]


def _trigrams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[start : start + 3]) for start in range(max(1, len(words) - 2))]
