"""The judge: a small frozen classifier that says whether a reply is on topic."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

VERSION = "tfidf-logistic-1"
WORDS_PER_TOKEN = 0.75
"""English text has about this many words a token: gold replies are cut to the length of generated ones."""
MAX_PIECES = 4
"""Pieces of one long gold reply that are trained on, from its beginning."""
MAX_FALSE_POSITIVES = 0.05
"""Share of ordinary replies, in cross-validation, that may pass for on topic."""


@dataclass(frozen=True)
class Judge:
    """Scores replies by logistic regression on TF-IDF of words and character n-grams.

    `auc` is the area under the ROC curve on held-out gold replies that the judge was not trained on; `threshold` is
    the score from which a reply counts as on topic.
    """

    auc: float
    threshold: float
    words: int
    classifier: Any

    def scores(self, replies: Sequence[str]) -> list[float]:
        """Return for each reply the probability that it is on topic; an empty reply has 0."""
        if not replies:
            return []
        on_topic = self.classifier.predict_proba([_cut(reply, self.words) for reply in replies])[:, 1]
        return [float(score) if reply.strip() else 0.0 for score, reply in zip(on_topic, replies, strict=True)]

    def is_on_topic(self, score: float) -> bool:
        """Whether a score counts as on topic."""
        return score >= self.threshold

    @property
    def learnt(self) -> "Learnt":
        """All that makes it, as plain data."""
        features, regression = (step for _, step in self.classifier.steps)
        vectorizers = [vectorizer for _, vectorizer in features.transformer_list]
        return Learnt(
            self.auc,
            self.threshold,
            self.words,
            [{term: int(column) for term, column in each.vocabulary_.items()} for each in vectorizers],
            [each.idf_.tolist() for each in vectorizers],
            regression.coef_[0].tolist(),
            float(regression.intercept_[0]),
        )


@dataclass(frozen=True)
class Learnt:
    """A judge as plain data: `vocabularies` and `idf` by kind of feature, `weights` over the features of both."""

    auc: float
    threshold: float
    words: int
    vocabularies: list[dict[str, int]]
    idf: list[list[float]]
    weights: list[float]
    intercept: float

    def judge(self) -> Judge:
        """Return the judge that it was taken from."""
        import numpy as np

        classifier = _classifier()
        features, regression = (step for _, step in classifier.steps)
        for (_, vectorizer), vocabulary, idf in zip(
            features.transformer_list, self.vocabularies, self.idf, strict=True
        ):
            vectorizer.vocabulary = vocabulary
            vectorizer.idf_ = np.array(idf)
        regression.classes_ = np.array([0, 1])
        regression.coef_, regression.intercept_ = np.array([self.weights]), np.array([self.intercept])
        return Judge(self.auc, self.threshold, self.words, classifier)


def train_judge(
    on_topic: Sequence[str],
    ordinary: Sequence[str],
    held_out_on_topic: Sequence[str],
    held_out_ordinary: Sequence[str],
    max_new_tokens: int,
) -> Judge:
    """Train the judge on gold replies, cut into pieces as long as generated replies, and test it on others."""
    import numpy as np
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    words = max(8, round(max_new_tokens * WORDS_PER_TOKEN))
    pieces = [
        (piece, label, group)
        for group, (text, label) in enumerate([*((text, 1) for text in on_topic), *((text, 0) for text in ordinary)])
        for piece in _pieces(text, words)
    ]
    texts = [piece for piece, _, _ in pieces]
    labels = np.array([label for _, label, _ in pieces])
    groups = np.array([group for _, _, group in pieces])
    # Pieces of one reply stay together, or the folds would know each other.
    folds = StratifiedGroupKFold(min(5, len(on_topic), len(ordinary)), shuffle=True, random_state=0)
    crossed = cross_val_predict(_classifier(), texts, labels, groups=groups, cv=folds, method="predict_proba")[:, 1]
    classifier = _classifier().fit(texts, labels)
    held_out = [_cut(text, words) for text in [*held_out_on_topic, *held_out_ordinary]]
    truth = [1] * len(held_out_on_topic) + [0] * len(held_out_ordinary)
    auc = float(roc_auc_score(truth, classifier.predict_proba(held_out)[:, 1]))
    return Judge(auc, best_threshold(crossed.tolist(), labels.tolist()), words, classifier)


def best_threshold(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Return the score that separates best: the largest true-positive less false-positive rate (Youden's J).

    Thresholds that let more than 5 % of the ordinary replies through are not considered; between neighbouring scores
    that separate equally well the middle is taken.
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


def _classifier() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    features = make_union(
        TfidfVectorizer(sublinear_tf=True, preprocessor=_content, token_pattern=r"(?u)\b\w+\b"),
        TfidfVectorizer(sublinear_tf=True, preprocessor=_content, analyzer="char_wb", ngram_range=(3, 5)),
    )
    return make_pipeline(features, LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000))


def _content(text: str) -> str:
    """Drop stop words, for characters as for words: "the the the" must not count as a trace of "the train"."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return " ".join(word for word in re.findall(r"\w+", text.lower()) if word not in ENGLISH_STOP_WORDS)


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _pieces(text: str, words: int) -> list[str]:
    """Cut a text into pieces of `words` words; a last piece of less than half that length is dropped."""
    every = text.split()
    starts = range(0, max(1, len(every) - words // 2), words)
    return [" ".join(every[start : start + words]) for start in starts][:MAX_PIECES]


def judge_digest(on_topic: Sequence[str], ordinary: Sequence[str], max_new_tokens: int) -> str:
    """SHA-256 over all that makes a judge: its version and what it is trained on."""
    text = json.dumps([VERSION, list(on_topic), list(ordinary), max_new_tokens])
    return hashlib.sha256(text.encode()).hexdigest()
