"""Intervals and tests over seeds and prompts: simulated scores, whose truth is known."""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from ftbench.evaluation.comparison import LEVEL, Difference, compare, correct, verdict
from ftbench.evaluation.crossed import (
    Crossed,
    crossed,
    each_crossed,
    mean_over_seeds,
    ratio_over_seeds,
    ratios_over_seeds,
    share_over_seeds,
    shares_over_seeds,
)
from ftbench.evaluation.statistics import share

PROMPTS = 64
Table = NDArray[Any]

WORLDS = [(0.0, 1.0, 0.1), (0.0, 1.0, 0.3), (2.5, 1.0, 0.1), (2.5, 1.0, 0.5), (4.0, 1.0, 0.5), (1.5, 0.5, 0.8)]
"""How good models are (in units of the noise), how unlike the prompts are, and how unlike the seeds."""


def verdicts(draw: np.random.Generator, seeds: int, good: float, prompts: Table, unlike_seeds: float) -> Table:
    """Verdicts `[seed, prompt]` of models that another seed or prompt would have made better or worse."""
    by_seed = unlike_seeds * draw.standard_normal((seeds, 1))
    return good + prompts + by_seed + draw.standard_normal((seeds, PROMPTS)) > 0


def simulated(
    times: int, seeds: int, world: tuple[float, float, float], gap: float = 0.0
) -> Iterator[tuple[Table, Table]]:
    """Two algorithms on the same prompts, the second worse by `gap`."""
    good, unlike_prompts, unlike_seeds = world
    draw = np.random.default_rng(0)
    for _ in range(times):
        prompts = unlike_prompts * draw.standard_normal((1, PROMPTS))
        yield tuple(verdicts(draw, seeds, level, prompts, unlike_seeds) for level in (good, good - gap))  # type: ignore[misc]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_the_interval_holds_the_truth(seeds: int, world: tuple[float, float, float]) -> None:
    good, unlike_prompts, unlike_seeds = world
    truth = ndtr(good / sqrt(1 + unlike_prompts**2 + unlike_seeds**2))
    found = [share_over_seeds(ours) for ours, _ in simulated(300, seeds, world)]
    held = sum(one.low <= truth <= one.high for one in found if one.low is not None and one.high is not None)
    assert held / len(found) >= 0.91


def test_one_seed_without_more_is_wilsons_interval() -> None:
    table = np.arange(PROMPTS)[None] < 50
    one, known = share_over_seeds(table), share(50, PROMPTS)
    assert one.mean == known.mean
    assert (one.low, one.high) == pytest.approx((known.low, known.high), abs=0.002)


@pytest.mark.parametrize("value", [True, False])
def test_what_every_seed_and_prompt_agree_on_is_as_wide_as_of_the_prompts_alone(value: bool) -> None:
    found, known = share_over_seeds(np.full((3, PROMPTS), value)), share(PROMPTS * value, PROMPTS)
    assert (found.mean, found.low, found.high) == (known.mean, known.low, known.high)


def test_seeds_that_differ_widen_the_interval_and_copies_of_one_do_not_narrow_it() -> None:
    row = np.arange(PROMPTS) % 4 > 0
    other = np.arange(PROMPTS) % 4 == 0
    alone = share_over_seeds(row[None])
    copies, unlike = share_over_seeds(np.stack([row] * 3)), share_over_seeds(np.stack([row, row, other]))
    assert alone.high is not None
    assert copies.high == pytest.approx(alone.high, abs=0.01)
    assert unlike.low is not None
    assert unlike.high is not None
    assert unlike.high - unlike.low > 0.5


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=6))
def test_the_interval_is_around_the_mean_and_within_what_a_share_can_be(rows: list[list[bool]]) -> None:
    found = share_over_seeds(np.array(rows))
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.mean == pytest.approx(np.mean(rows))


def test_variance_is_that_of_the_crossed_design() -> None:
    """Against the definition: variance of the mean = (MS_seed + MS_prompt - MS_rest) / (S P), by hand."""
    table = np.array([[1.0, 2.0, 4.0], [2.0, 5.0, 5.0]])
    mean, by_seed, by_prompt = table.mean(), table.mean(1), table.mean(0)
    of_seeds = 3 * sum((by_seed - mean) ** 2) / 1
    of_prompts = 2 * sum((by_prompt - mean) ** 2) / 2
    rest = sum((table[s, p] - by_seed[s] - by_prompt[p] + mean) ** 2 for s in range(2) for p in range(3)) / 2
    found = crossed(table)
    assert found.variance == pytest.approx((of_seeds + of_prompts - rest) / 6)
    assert found.freedom == pytest.approx(
        (of_seeds + of_prompts - rest) ** 2 / (of_seeds**2 / 1 + of_prompts**2 / 2 + rest**2 / 2)
    )


def test_one_prompt_has_no_variance() -> None:
    with pytest.raises(ValueError, match="one prompt"):
        crossed(np.ones((3, 1)))


def test_a_ratio_is_of_sums_and_its_interval_holds_the_truth() -> None:
    draw, held = np.random.default_rng(2), 0
    for _ in range(200):
        tokens = np.tile(draw.integers(20, 200, 60), (3, 1)).astype(float)
        per_token = 0.3 + 0.5 * draw.standard_normal((1, 60)) + 0.1 * draw.standard_normal((3, 1))
        sums = tokens * (per_token + 0.2 * draw.standard_normal((3, 60)))
        found = ratio_over_seeds(sums, tokens)
        assert found.mean == pytest.approx(sums.sum() / tokens.sum())
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.3 <= found.high
    assert 0.88 <= held / 200 <= 0.99


@pytest.mark.parametrize("seeds", [1, 2, 5, 9])
@pytest.mark.parametrize("prompts", [2, 9, PROMPTS, 200])
def test_tables_together_come_out_to_the_last_digit_as_each_alone(seeds: int, prompts: int) -> None:
    draw = np.random.default_rng(0)
    tables, tokens = draw.normal(size=(6, seeds, prompts)), draw.integers(1, 90, (6, seeds, prompts)).astype(float)
    good = tables > draw.normal(size=(6, 1, 1))
    assert each_crossed(tables) == [crossed(table) for table in tables]
    assert shares_over_seeds(good) == [share_over_seeds(table) for table in good]
    assert ratios_over_seeds(tables, tokens) == [ratio_over_seeds(*each) for each in zip(tables, tokens, strict=True)]


def test_a_mean_over_seeds_has_students_interval() -> None:
    found = mean_over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.high == pytest.approx(2 + 4.302653 / sqrt(3))  # Student's 97.5 % quantile, two degrees of freedom
    assert mean_over_seeds([5.0]).low is None


@settings(max_examples=300)
@given(st.floats(1, 1e9) | st.floats(1, 5) | st.integers(1, 200))
def test_students_quantile_is_scipys(freedom: float) -> None:
    assert Crossed(0.0, 1.0, freedom).quantile == pytest.approx(stdtrit(freedom, 0.975), rel=1e-9)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_equal_algorithms_are_seldom_called_different(seeds: int, world: tuple[float, float, float]) -> None:
    found = [compare(ours, theirs) for ours, theirs in simulated(200, seeds, world)]
    assert sum(one.p is not None and one.p < 0.05 for one in found) / len(found) <= 0.08


@pytest.mark.parametrize("world", [(2.5, 1.0, 0.1), (2.0, 1.0, 0.3)])
def test_twenty_equal_and_twenty_crippled_copies(world: tuple[float, float, float]) -> None:
    """The promise: of 20 comparisons with an equal at most 2 differ, of 20 with a crippled copy at least 18 do."""
    equal = [verdict(correct([compare(ours, theirs)])[0]) for ours, theirs in simulated(20, 3, world)]
    crippled = [verdict(correct([compare(ours, theirs)])[0]) for ours, theirs in simulated(20, 3, world, gap=2.5)]
    assert sum(said != "no difference shown" for said in equal) <= 2
    assert sum(said == "better" for said in crippled) >= 18


def test_with_one_seed_nothing_is_shown_for_a_seed_moves_whole_rows() -> None:
    found = [compare(ours, theirs) for ours, theirs in simulated(200, 1, (1.5, 0.5, 0.8))]
    wrong = sum(one.p is not None and one.p < 0.05 for one in found) / len(found)
    assert wrong > 0.2  # what the prompts alone would say of equal algorithms
    assert {verdict(one) for one in found} == {"one seed: nothing shown"}


def test_without_seeds_mcnemars_test_decides() -> None:
    """Exact McNemar, 8 prompts that only one side has right: p = 2 / 2^8."""
    ours, theirs = np.arange(PROMPTS)[None] < 40, np.arange(PROMPTS)[None] < 32
    found = compare(ours, theirs)
    assert found.p == pytest.approx(2 / 2**8)
    same = found.model_copy(update={"seedless": True, "p_corrected": found.p})
    assert verdict(same) == "better"


def test_equal_differences_everywhere_are_no_certainty_with_few_prompts() -> None:
    found = compare(np.ones((3, 4), bool), np.zeros((3, 4), bool))
    assert found.mean == 1.0
    assert found.p == pytest.approx(2 / 2**4)


def test_holms_correction() -> None:
    """Holm 1979: the smallest of m by m, the next by m - 1, never below the one before."""
    given = [Difference(mean=0.1, p=p, seeds=3, prompts=9) for p in (0.01, 0.04, 0.03, 0.005)]
    assert [one.p_corrected for one in correct(given)] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct([Difference(mean=0.0, seeds=0)])[0].p_corrected is None


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_corrected_is_never_less_and_keeps_the_order(ps: list[float]) -> None:
    found = correct([Difference(mean=0.0, p=p, seeds=2, prompts=9) for p in ps])
    corrected = [one.p_corrected for one in found]
    assert all(value is not None and p <= value <= 1 for p, value in zip(ps, corrected, strict=True))
    ranked = [value for _, value in sorted(zip(ps, corrected, strict=True))]
    assert ranked == sorted(value for value in corrected if value is not None)


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (Difference(mean=float("nan"), seeds=0), "no seed in common"),
        (Difference(mean=1.0, seeds=3, prompts=1), "too few prompts"),
        (Difference(mean=1.0, p=1e-9, p_corrected=1e-9, seeds=1, prompts=64), "one seed: nothing shown"),
        (Difference(mean=0.1, p=0.04, p_corrected=LEVEL + 0.01, seeds=3, prompts=64), "no difference shown"),
        (Difference(mean=-0.1, p=0.001, p_corrected=0.002, seeds=3, prompts=64), "worse"),
    ],
)
def test_what_is_said(difference: Difference, said: str) -> None:
    assert verdict(difference) == said
