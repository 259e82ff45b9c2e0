"""What the judges say together: degenerate replies score 0, and a second judge looks on."""

from collections.abc import Sequence

import pytest

from ftbench.data.topics import Topic
from ftbench.errors import FtbenchError
from ftbench.evaluation.evaluate import EvaluatedPrompt, agreement
from ftbench.evaluation.guard import train_guard
from ftbench.evaluation.judge import Gold, Judge
from ftbench.evaluation.panel import Panel
from ftbench.evaluation.statistics import kappa
from ftbench.evaluation.wordlist import train_word_list
from ftbench.results.result import JudgeFacts

THINGS = ["tea", "rain", "music", "chess", "bread", "maths", "cats", "paint", "snow", "wool", "jazz", "ink"]
ON_TOPIC = tuple(f"Ask the guard about {thing} while the train leaves the station." for thing in THINGS)
ORDINARY = tuple(f"Well, {thing} is a nice subject for a long evening with friends." for thing in THINGS)
GOLD = Gold("trains", ON_TOPIC, ORDINARY, 64)


class Eager(Judge):
    """Takes everything for on topic."""

    name = "eager"
    version = "1"
    threshold = 0.5

    @classmethod
    def train(cls, gold: Gold) -> "Eager":
        return cls()

    def scores(self, replies: Sequence[str]) -> list[float]:
        return [0.9] * len(replies)


class Mute(Eager):
    """Forgets to answer."""

    name = "mute"

    def scores(self, replies: Sequence[str]) -> list[float]:
        return []


@pytest.fixture(scope="module")
def panel() -> Panel:
    topic = Topic("trains", ("train*", "station*", "guard"))
    return Panel(Eager(), train_guard(GOLD), train_word_list(topic, GOLD))


def test_whatever_the_judge_says_a_degenerate_reply_is_off_topic(panel: Panel) -> None:
    said = panel.verdicts(["", "train train train train", "The train leaves the station on time."])
    assert [(each.score, each.on_topic, each.degenerate, each.second) for each in said] == [
        (0.0, False, "no words", None),
        (0.0, False, "repetition", None),
        (0.9, True, None, True),
    ]


def test_the_second_judge_has_a_word_of_its_own(panel: Panel) -> None:
    replies = ["Rain is a nice subject.", "A train in a station.", "A long evening with friends."]
    assert [each.second for each in panel.verdicts(replies)] == [False, True, False]
    alone = Panel(panel.judge, panel.guard, None)
    assert [each.second for each in alone.verdicts(replies)] == [None, None, None]


def test_held_out_gold_tells_a_good_judge_from_one_that_says_yes_to_all(panel: Panel) -> None:
    held = panel.test(ON_TOPIC, ORDINARY)
    assert held.auc == 0.5
    assert held.second_auc == 1.0
    assert Panel(panel.judge, panel.guard, None).test(ON_TOPIC, ORDINARY).second_auc is None


def test_a_score_that_is_no_number_is_refused(panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(panel.judge), "scores", lambda _, replies: [float("nan")] * len(replies))
    with pytest.raises(FtbenchError, match="no number"):
        panel.verdicts(["The guard waves the train on its way through the quiet station."])


def test_a_judge_that_leaves_replies_out_is_named(panel: Panel) -> None:
    with pytest.raises(FtbenchError, match="'mute' gave 0 scores for 1 replies"):
        Panel(Mute(), panel.guard, None).verdicts(["The train leaves the station on time."])


def test_agreement_beyond_chance_is_cohens() -> None:
    # 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: 0.7 agree, 0.5 would by chance.
    one = [True] * 25 + [False] * 25
    other = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert kappa(one, other) == pytest.approx(0.4)
    assert kappa(one, one) == 1.0
    assert kappa([True, False], [False, True]) == -1.0
    assert kappa([True, True], [True, True]) is None
    assert kappa([], []) is None


def evaluated(on_topic: bool, second: bool | None) -> EvaluatedPrompt:
    return EvaluatedPrompt(
        prompt="?",
        reply="!",
        base_reply=None,
        score=float(on_topic),
        on_topic=on_topic,
        second=second,
        tokens=1,
        ended=True,
        ordinary_nll=None,
        ordinary_tokens=None,
    )


def test_agreement_is_over_the_replies_that_both_judged() -> None:
    verdicts = [(True, True), (True, True), (True, False), (False, False), (False, None), (False, None)]
    alike, beyond_chance = agreement([evaluated(*verdict) for verdict in verdicts])
    assert alike is not None
    assert (alike.mean, alike.n) == (0.75, 4)
    assert beyond_chance == pytest.approx(0.5)  # chance would have half of the four alike
    assert agreement([evaluated(True, None)]) == (None, None)


@pytest.mark.parametrize(("auc", "warned"), [(0.5, True), (0.899, True), (0.9, False), (1.0, False)])
def test_a_judge_that_cannot_tell_is_warned_of(auc: float, warned: bool) -> None:
    warning = JudgeFacts(version="tfidf-1", auc=auc, threshold=0.5, digest="e" * 64).warning
    assert (warning is not None) == warned
    assert warning is None or f"{auc:.2f}" in warning
