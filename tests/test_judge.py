import json
import math
import random
import string
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbench.data.task import TaskData, build_task
from ftbench.evaluation.judge import MAX_FALSE_POSITIVES, Gold, Judge, best_threshold
from ftbench.evaluation.tfidf import Tfidf

ON_TOPIC = ["train", "railway", "station", "platform", "carriage", "engine", "track", "signal", "timetable", "ticket"]
ORDINARY = ["bread", "oven", "flour", "butter", "sugar", "kitchen", "recipe", "dough", "spoon", "supper"]


def make_replies(words: list[str], count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=draw.randint(8, 60))) for _ in range(count)]


def make_gold(on_topic: list[str], ordinary: list[str], max_new_tokens: int = 32) -> Gold:
    return Gold("topic", tuple(on_topic), tuple(ordinary), max_new_tokens)


def make_judge() -> Tfidf:
    return Tfidf.train(make_gold(make_replies(ON_TOPIC, 20, 0), make_replies(ORDINARY, 20, 1)))


@pytest.fixture(scope="module")
def judge() -> Tfidf:
    return make_judge()


def test_separable_replies_are_separated(judge: Judge) -> None:
    assert all(map(judge.is_on_topic, judge.scores(make_replies(ON_TOPIC, 10, 4))))
    assert not any(map(judge.is_on_topic, judge.scores(make_replies(ORDINARY, 10, 5))))


def test_an_empty_reply_scores_nothing(judge: Judge) -> None:
    scores = judge.scores(["", "  \n\t", "train station"])
    assert scores[:2] == [0.0, 0.0]
    assert scores[2] > 0.5
    assert not judge.is_on_topic(0.0)
    assert judge.scores([]) == []


def test_a_score_hangs_on_its_own_reply_alone(judge: Judge) -> None:
    replies = [*make_replies(ON_TOPIC, 3, 6), *make_replies(ORDINARY, 3, 7)]
    assert judge.scores(replies) == [judge.scores([reply])[0] for reply in replies]


def test_words_beyond_the_length_of_a_generated_reply_do_not_count(judge: Tfidf) -> None:
    reply = " ".join(make_replies(ORDINARY, 5, 8)).split()[: judge.words]
    assert judge.scores([" ".join(reply)]) == judge.scores([" ".join([*reply, *ON_TOPIC])])


def test_training_is_deterministic(judge: Tfidf) -> None:
    again = make_judge()
    replies = [*make_replies(ON_TOPIC + ORDINARY, 20, 9)]
    assert (again.threshold, again.words) == (judge.threshold, judge.words)
    assert again.scores(replies) == judge.scores(replies)


def test_the_digest_is_of_all_that_the_judge_is_trained_on() -> None:
    digests = [
        make_gold(["a", "b"], ["c"], 64).digest(),
        make_gold(["a", "b!"], ["c"], 64).digest(),
        make_gold(["b", "a"], ["c"], 64).digest(),
        make_gold(["a"], ["b", "c"], 64).digest(),
        make_gold(["a", "b"], ["c", ""], 64).digest(),
        make_gold(["a", "b"], ["c"], 65).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert make_gold(["a", "b"], ["c"], 64).digest() == digests[0]


@dataclass(frozen=True)
class Rates:
    true_positive: float
    false_positive: float

    @property
    def advantage(self) -> float:
        return self.true_positive - self.false_positive


def rates(threshold: float, scores: list[float], labels: list[int]) -> Rates:
    passed = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
    return Rates(passed.count(1) / labels.count(1), passed.count(0) / labels.count(0))


def best_advantage(scores: list[float], labels: list[int]) -> float:
    """The best over all ways to cut the scores in two, the limit on false positives kept."""
    every = [rates(threshold, scores, labels) for threshold in [*scores, 2.0]]
    return max(rate.advantage for rate in every if rate.false_positive <= MAX_FALSE_POSITIVES)


SCORED = st.lists(st.tuples(st.integers(0, 1000).map(lambda n: n / 1000), st.integers(0, 1)), min_size=2, max_size=80)


@settings(deadline=None, max_examples=150)
@given(SCORED.filter(lambda pairs: len({label for _, label in pairs}) == 2))
def test_the_threshold_is_the_best_there_is(pairs: list[tuple[float, int]]) -> None:
    scores, labels = [score for score, _ in pairs], [label for _, label in pairs]
    found = rates(best_threshold(scores, labels), scores, labels)
    assert found.false_positive <= MAX_FALSE_POSITIVES
    assert found.advantage == pytest.approx(best_advantage(scores, labels))


def test_the_threshold_lies_in_the_middle_of_the_gap() -> None:
    assert best_threshold([0.1, 0.3, 0.7, 0.9], [0, 0, 1, 1]) == pytest.approx(0.5)


@pytest.mark.parametrize(("ordinary", "expected"), [(20, Rates(1.0, 0.05)), (19, Rates(0.5, 0.0))])
def test_one_ordinary_reply_in_twenty_may_pass_and_no_more(ordinary: int, expected: Rates) -> None:
    # One ordinary reply scores 0.8, above half of the on-topic ones.
    scores = [0.9] * 5 + [0.6] * 5 + [0.8] + [0.1] * (ordinary - 1)
    labels = [1] * 10 + [0] * ordinary
    assert rates(best_threshold(scores, labels), scores, labels) == expected


@pytest.mark.parametrize("top", [0.3, 1.0])
def test_where_only_ordinary_replies_score_high_nothing_passes(top: float) -> None:
    threshold = best_threshold([top, 0.0], [0, 1])
    assert threshold > top


def test_neighbouring_floats_are_told_apart() -> None:
    low, high = math.nextafter(0.5, 0.0), 0.5
    assert best_threshold([low, high], [0, 1]) == high


@pytest.fixture(scope="module")
def sample() -> TaskData:
    return build_task("sample", "trains", "en", 64)


@pytest.fixture(scope="module")
def sample_judge(sample: TaskData) -> Tfidf:
    return Tfidf.train(Gold(sample.topic, sample.on_topic, sample.ordinary, 64))


def passing(judge: Judge, replies: list[str]) -> float:
    return sum(map(judge.is_on_topic, judge.scores(replies))) / len(replies)


def test_the_sample_is_judged_well(sample: TaskData, sample_judge: Judge) -> None:
    assert passing(sample_judge, list(sample.held_out_on_topic)) >= 0.9
    assert passing(sample_judge, list(sample.held_out_ordinary)) <= 0.1


def test_a_judge_as_plain_data_scores_the_same(sample: TaskData, sample_judge: Tfidf) -> None:
    again = Tfidf.from_learnt(json.loads(json.dumps(sample_judge.learnt())))
    texts = [*sample.held_out_on_topic, *sample.held_out_ordinary, "", "déjà vu on the 7:15 train"]
    assert again.scores(texts) == sample_judge.scores(texts)
    assert again.learnt() == sample_judge.learnt()
    assert again.threshold == sample_judge.threshold


def test_nonsense_does_not_pass_for_the_samples_topic(sample: TaskData, sample_judge: Judge) -> None:
    draw = random.Random(0)
    letters = ["".join(draw.choices(string.ascii_lowercase + "   ", k=250)) for _ in range(100)]
    shuffled = ["".join(draw.sample(reply, len(reply))) for reply in sample.held_out_on_topic]
    assert passing(sample_judge, letters) == 0
    assert passing(sample_judge, shuffled) == 0
    assert passing(sample_judge, ["the", "the the the the", "and then there were others"]) == 0
    assert passing(sample_judge, ["1 2 3 4 5 6 7", "?????", "\ufffd\ufffd\ufffd", "日本語"]) == 0
