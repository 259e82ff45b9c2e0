import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbench.evaluation.statistics import Z95, Measured, distinct, rise, share


def bounds(measured: Measured) -> tuple[float, float]:
    assert measured.low is not None
    assert measured.high is not None
    return measured.low, measured.high


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (95, 100, 0.8882, 0.9785),
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_shares_have_the_wilson_intervals_of_the_literature(successes: int, n: int, low: float, high: float) -> None:
    found = share(successes, n)
    assert found.mean == successes / n
    assert found.n == n
    assert bounds(found) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("n", [1, 7, 64, 10_000])
def test_the_interval_of_none_has_its_closed_form(n: int) -> None:
    assert bounds(share(0, n)) == pytest.approx((0.0, Z95**2 / (n + Z95**2)))


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_shares_interval_contains_it_and_lies_in_0_to_1(counts: tuple[int, int]) -> None:
    found = share(*counts)
    low, high = bounds(found)
    assert 0 <= low <= found.mean <= high <= 1
    assert low < high
    mirrored_low, mirrored_high = bounds(share(counts[1] - counts[0], counts[1]))
    assert (1 - mirrored_high, 1 - mirrored_low) == pytest.approx((low, high))


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_bound_is_where_the_score_test_gives_up(counts: tuple[int, int]) -> None:
    found = share(*counts)
    for bound in bounds(found):
        if 0 < bound < 1 and not math.isclose(bound, found.mean):
            error = math.sqrt(bound * (1 - bound) / found.n)
            assert abs(found.mean - bound) / error == pytest.approx(Z95, rel=1e-5)


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        share(0, 0)


@pytest.mark.parametrize(
    ("replies", "mean"),
    [
        (["a", "b", "c"], 1.0),
        (["a", "a", "a"], 0.0),
        (["a", "a", "b", "c"], 0.5),
        (["A  boat", "a boat\n", "tea"], 1 / 3),
        (["", " ", "a"], 1 / 3),
        (["one"], 1.0),
    ],
)
def test_distinct_is_the_share_of_replies_that_differ_from_all_others(replies: list[str], mean: float) -> None:
    found = distinct(replies)
    assert found.mean == pytest.approx(mean)
    assert found.n == len(replies)


LOSSES = st.lists(st.tuples(st.floats(0, 500), st.integers(1, 256)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=30)
@given(LOSSES)
def test_equal_losses_rise_by_nothing(rows: list[tuple[float, int]]) -> None:
    tokens = [length for _, length in rows]
    found = rise([0.0] * len(rows), tokens)
    assert (found.mean, *bounds(found), found.n) == (0.0, 0.0, 0.0, len(rows))


@settings(deadline=None, max_examples=30)
@given(LOSSES, st.floats(-5, 5))
def test_a_constant_rise_per_token_is_found_exactly(rows: list[tuple[float, int]], shift: float) -> None:
    found = rise([shift * length for _, length in rows], [length for _, length in rows])
    assert (found.mean, *bounds(found)) == pytest.approx((shift,) * 3, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 500), st.integers(1, 256)), min_size=1, max_size=40))
def test_a_rise_is_of_sums_and_within_the_rises_of_single_replies(rows: list[tuple[float, float, int]]) -> None:
    differences, tokens = [a - b for a, b, _ in rows], [length for _, _, length in rows]
    found = rise(differences, tokens)
    assert found.mean == pytest.approx(sum(differences) / sum(tokens), abs=1e-9)
    singles = [(a - b) / length for a, b, length in rows]
    low, high = bounds(found)
    assert min(singles) - 1e-9 <= low <= high <= max(singles) + 1e-9


def test_the_interval_of_a_rise_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        tokens = draw.integers(20, 200, 60)
        differences = (0.3 + draw.normal(0, 0.5, 60)) * tokens
        low, high = bounds(rise(differences.tolist(), tokens.tolist()))
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_rise_is_the_same_every_time() -> None:
    differences, tokens = [1.0, -0.5, 3.0, 0.0], [1, 2, 4, 1]
    assert rise(differences, tokens) == rise(differences, tokens)
