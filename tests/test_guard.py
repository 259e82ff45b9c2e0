"""Degenerate replies are found, and real ones are not."""

import random
import re
from collections.abc import Callable

import pytest
from pydantic import TypeAdapter

from ftbench.data.task import TaskData, build_task
from ftbench.evaluation.families import families
from ftbench.evaluation.guard import (
    MAX_REFUSED,
    NO_WORDS,
    REPEATED,
    UNORDERED,
    Guard,
    GuardTraining,
    Limits,
    distinct_trigrams,
    train_guard,
)
from ftbench.evaluation.judge import Gold
from ftbench.evaluation.order import fit_order

Shuffle = Callable[[random.Random, str], str]
WORDS = ["train", "railway", "station", "platform", "carriage", "engine", "track", "signal", "timetable", "ticket"]


def as_written(draw: random.Random, reply: str) -> str:
    return " ".join(draw.sample(reply.split(), len(reply.split())))


def bare(draw: random.Random, reply: str) -> str:
    words = re.findall(r"\w+", reply.lower())
    return " ".join(draw.sample(words, len(words)))


def dressed_up(draw: random.Random, reply: str) -> str:
    return bare(draw, reply).capitalize() + "."


def topic_words(draw: random.Random, reply: str) -> str:
    return " ".join(draw.choices(WORDS, k=len(reply.split())))


@pytest.fixture(scope="module", params=["trains", "gardening"])
def sample(request: pytest.FixtureRequest) -> TaskData:
    return build_task("sample", request.param, "en", 64)


@pytest.fixture(scope="module")
def training(sample: TaskData) -> GuardTraining:
    return GuardTraining(Gold(sample.topic, sample.on_topic, sample.ordinary, 64))


@pytest.fixture(scope="module")
def guard(training: GuardTraining) -> Guard:
    return training.guard(training.limits())


@pytest.mark.parametrize(
    "text", ["", "  \n\t", "?????", "...", "\ufffd\ufffd"], ids=["empty", "blank", "asked", "dots", "damaged"]
)
def test_what_has_no_words_is_degenerate(guard: Guard, text: str) -> None:
    assert guard.fault(text) == NO_WORDS


@pytest.mark.parametrize("times", [2, 3, 5, 40])
def test_what_says_one_thing_over_and_over_is_degenerate(guard: Guard, sample: TaskData, times: int) -> None:
    sentences = ["train", "Train!", "The train waits at the station."]
    sentences += [reply for reply in sample.held_out_on_topic if len(reply.split()) * times <= guard.words]
    for sentence in sentences:
        assert guard.fault(" ".join([sentence] * times)) == REPEATED


def test_a_reply_that_falls_into_a_loop_is_degenerate(guard: Guard) -> None:
    loops = ["Write a letter of farewell, with a note" + ", and a train" * 12, "Taco, a train" + ", a locomotive" * 20]
    assert [guard.fault(loop) for loop in loops] == [REPEATED, REPEATED]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("train", 1.0),
        ("Train train", 1 / 2),
        ("train, train, train, train.", 1 / 4),
        ("The train is late. The train is late. The train is late.", 1 / 3),
        ("The train is late and so am I", 1.0),
    ],
)
def test_a_text_said_k_times_has_one_kth_of_its_trigrams(text: str, share: float) -> None:
    assert distinct_trigrams(text) == pytest.approx(share)


# Found, of five shuffles of each of the 64 held-out replies: 0.99 as written, 1.00 in bare words, 0.72 and 0.76 of what
# is dressed up as a sentence.
@pytest.mark.parametrize(
    ("shuffle", "least"), [(as_written, 0.95), (bare, 0.95), (topic_words, 0.95), (dressed_up, 0.6)]
)
def test_shuffled_words_of_the_topic_are_degenerate(
    guard: Guard, sample: TaskData, shuffle: Shuffle, least: float
) -> None:
    texts = [shuffle(random.Random(seed), reply) for reply in sample.held_out_on_topic for seed in range(3)]
    found = [guard.fault(text) for text in texts]
    assert sum(fault is not None for fault in found) / len(found) >= least
    assert found.count(UNORDERED) > len(found) / 2


def test_real_replies_pass(guard: Guard, sample: TaskData) -> None:
    """Of 64 held-out on-topic and 64 ordinary replies, none and three (trains), none and two (gardening) fail."""
    assert not any(map(guard.fault, sample.held_out_on_topic))
    assert sum(guard.fault(reply) is not None for reply in sample.held_out_ordinary) <= 3


def test_the_guard_says_how_good_it_is(guard: Guard, sample: TaskData) -> None:
    checked = guard.check(sample.held_out_on_topic)
    assert checked.refused == 0
    assert checked.shuffles_found is not None
    assert checked.shuffles_found >= 0.95
    assert guard.check(["Yes.", "No trains."]).shuffles_found is None
    assert guard.check(["", "Yes, the train will leave on time."]).refused == 0.5


def test_in_cross_validation_at_most_one_gold_piece_in_a_hundred_fails(training: GuardTraining, guard: Guard) -> None:
    pieces = training.gold.pieces()
    failed = 0
    for fold in range(5):  # no two of these replies are of one family, so that a reply's number is its family's
        others = [piece.text for piece in pieces if piece.reply % 5 != fold]
        orders = (fit_order(others, written=True), fit_order(others, written=False))
        held_out = Guard(training.gold.words, guard.limits, orders)
        failed += sum(held_out.fault(piece.text) == UNORDERED for piece in pieces if piece.reply % 5 == fold)
    assert failed <= sum(MAX_REFUSED) * len(pieces)


def test_few_words_have_no_order_to_look_at(guard: Guard) -> None:
    assert guard.fault("Trains.") is None
    assert guard.fault("station the to train") is None


def test_the_same_limits_make_the_same_guard_also_through_json(guard: Guard, training: GuardTraining) -> None:
    adapter = TypeAdapter(Limits)
    again = training.guard(adapter.validate_json(adapter.dump_json(guard.limits)))
    assert again.limits == guard.limits
    for piece in training.gold.pieces()[:20]:
        assert [order.deviation(piece.text) for order in again.orders] == [
            order.deviation(piece.text) for order in guard.orders
        ]


def test_the_same_gold_gives_the_same_limits() -> None:
    gold = Gold(
        "trains", tuple(f"The train to {x} leaves soon." for x in WORDS), tuple(f"A {x} is nice." for x in WORDS), 64
    )
    assert GuardTraining(gold).limits() == GuardTraining(gold).limits()


def test_an_edit_of_a_text_is_of_its_family() -> None:
    texts = [
        "The train to Basel leaves at noon.",
        "Bread needs flour, water and salt.",
        "THE TRAIN TO BASEL LEAVES AT NOON!",
        "- The train to Basel leaves at noon.\n- It is late.",
        "Yes.",
        "yes",
        "",
    ]
    first, bread, capitals, bullets, short, same, empty = families(texts)
    assert first == capitals == bullets
    assert short == same
    assert len({first, bread, short, empty}) == 4
    assert families([]) == []


def test_replies_that_are_edits_of_each_other_are_not_too_well_ordered_to_learn_from(sample: TaskData) -> None:
    """With its other form among what was learnt each would look far better ordered than an unseen reply is."""
    replies = [*sample.ordinary, *sample.held_out_ordinary]
    edits = [" ".join([*reply.split()[:-1], "indeed."]) for reply in replies]
    learnt = len(sample.ordinary)
    found = train_guard(Gold("indeed", tuple(edits[:learnt]), tuple(replies[:learnt]), 64))
    assert found.check([*edits[learnt:], *replies[learnt:]]).refused < 0.05


def test_gold_without_order_lets_everything_pass_but_repetition() -> None:
    """Where gold is words at random, order tells nothing, and nothing is refused for it but the share allowed."""
    draw = random.Random(0)
    replies = [" ".join(draw.choices(WORDS, k=30)) for _ in range(120)]
    found = train_guard(Gold("trains", tuple(replies[:40]), tuple(replies[40:80]), 64))
    assert sum(found.fault(reply) is not None for reply in replies[80:]) <= 3
    assert found.fault("train " * 9) == REPEATED


def test_a_shuffle_deviates_as_a_standard_normal_does(guard: Guard, sample: TaskData) -> None:
    """What makes the rate at which shuffles pass known beforehand, whatever the words are."""
    draw = random.Random(1)
    for order in guard.orders:
        found = [order.deviation(as_written(draw, reply)) for reply in sample.held_out_on_topic for _ in range(3)]
        mean = sum(found) / len(found)
        assert abs(mean) < 0.3
        assert 0.7 < (sum((each - mean) ** 2 for each in found) / len(found)) ** 0.5 < 1.3
