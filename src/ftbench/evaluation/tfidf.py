"""The shipped judge: logistic regression on TF-IDF of words and character n-grams."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from ftbench.evaluation.judge import Gold, Judge, best_threshold, cut


@dataclass(frozen=True)
class Tfidf(Judge):
    """Scores replies by logistic regression on TF-IDF of words and character n-grams."""

    name = "tfidf"
    version = "logistic-2"

    threshold: float
    words: int
    classifier: Any

    @classmethod
    def train(cls, gold: Gold) -> "Tfidf":
        """Train on all pieces; the threshold is from scores that pieces got from a judge that knew no part of them."""
        import numpy as np
        from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

        pieces = gold.pieces()
        texts = [piece.text for piece in pieces]
        labels = np.array([int(piece.on_topic) for piece in pieces])
        groups = np.array([piece.reply for piece in pieces])
        # Pieces of one reply stay together, or the folds would know each other.
        folds = StratifiedGroupKFold(min(5, len(gold.on_topic), len(gold.ordinary)), shuffle=True, random_state=0)
        crossed = cross_val_predict(_classifier(), texts, labels, groups=groups, cv=folds, method="predict_proba")[:, 1]
        classifier = _classifier().fit(texts, labels)
        return cls(best_threshold(crossed.tolist(), labels.tolist()), gold.words, classifier)

    def scores(self, replies: Sequence[str]) -> list[float]:
        """Return for each reply the probability that it is on topic; an empty reply has 0."""
        if not replies:
            return []
        on_topic = self.classifier.predict_proba([cut(reply, self.words) for reply in replies])[:, 1]
        return [float(score) if reply.strip() else 0.0 for score, reply in zip(on_topic, replies, strict=True)]

    def learnt(self) -> dict[str, Any]:
        """Return vocabularies, IDF and weights."""
        features, regression = (step for _, step in self.classifier.steps)
        vectorizers = [vectorizer for _, vectorizer in features.transformer_list]
        return asdict(
            _Learnt(
                self.threshold,
                self.words,
                [{term: int(column) for term, column in each.vocabulary_.items()} for each in vectorizers],
                [each.idf_.tolist() for each in vectorizers],
                regression.coef_[0].tolist(),
                float(regression.intercept_[0]),
            )
        )

    @classmethod
    def from_learnt(cls, learnt: Any) -> "Tfidf":
        """Put the vocabularies, IDF and weights back in their places.

        Raises:
            ValueError: it is not what `learnt` returns.
        """
        import numpy as np

        kept = TypeAdapter(_Learnt).validate_python(learnt)
        classifier = _classifier()
        features, regression = (step for _, step in classifier.steps)
        for (_, vectorizer), vocabulary, idf in zip(
            features.transformer_list, kept.vocabularies, kept.idf, strict=True
        ):
            vectorizer.vocabulary = vocabulary
            vectorizer.idf_ = np.array(idf)
        regression.classes_ = np.array([0, 1])
        regression.coef_, regression.intercept_ = np.array([kept.weights]), np.array([kept.intercept])
        return cls(kept.threshold, kept.words, classifier)


@dataclass(frozen=True)
class _Learnt:
    """The judge as plain data: `vocabularies` and `idf` by kind of feature, `weights` over the features of both."""

    threshold: float
    words: int
    vocabularies: list[dict[str, int]]
    idf: list[list[float]]
    weights: list[float]
    intercept: float


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
