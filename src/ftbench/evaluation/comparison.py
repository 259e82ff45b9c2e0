"""Whether two algorithms differ: paired by prompt and by seed."""

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from ftbench.evaluation.crossed import crossed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Table = NDArray[Any]

LEVEL = 0.05
"""How often, at most, rows of a table without any difference may contain one that is called different."""


class Difference(BaseModel):
    """How a row differs from another in a share, paired: the other is taken from it."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float | None = Field(None, description="of the 95 % interval over prompts and seeds")
    high: float | None = None
    p: float | None = Field(None, description="of this one test")
    p_corrected: float | None = Field(None, description="by Holm, over all rows that were tested")
    seeds: int = Field(description="that both have")
    prompts: int = 0
    seedless: bool = Field(False, description="whether no seed could change it, nothing having been trained")


def compare(verdicts: "Table", others: "Table") -> Difference:
    """Test whether `verdicts` and `others`, both `[seed, prompt]`, have the same mean; row i of both is of one seed.

    Student's test on the crossed table of paired differences; and because that knows no doubt where all differences are
    equal, also the sign test over prompts (McNemar's, with one seed): the larger p counts. With one seed the test is of
    these two models alone: that another seed moves whole rows cannot be seen. In simulations with seeds that differ, it
    then called equal algorithms different up to 44 times of 100, and with 2 to 5 seeds at most 8 times.
    """
    from scipy.special import bdtr, stdtr

    differences = verdicts.astype(float) - others.astype(float)
    seeds, prompts = differences.shape
    if prompts < 2:
        return Difference(mean=float(differences.mean()), seeds=seeds, prompts=prompts)
    found = crossed(differences)
    half = found.quantile * sqrt(found.variance)
    by_prompt = differences.mean(axis=0)
    more, less = int((by_prompt > 0).sum()), int((by_prompt < 0).sum())
    by_sign = min(1.0, 2 * float(bdtr(min(more, less), more + less, 0.5))) if more + less else 1.0
    by_size = 2 * float(stdtr(found.freedom, -abs(found.mean) / sqrt(found.variance))) if found.variance else 0.0
    return Difference(
        mean=found.mean,
        low=max(-1.0, found.mean - half),
        high=min(1.0, found.mean + half),
        p=max(by_sign, by_size) if seeds > 1 else by_sign,
        seeds=seeds,
        prompts=prompts,
    )


def correct(differences: Sequence[Difference]) -> list[Difference]:
    """Correct each p for the number of tests, by Holm (1979): the chance of any false "different" stays at LEVEL."""
    tested = sorted((one.p, index) for index, one in enumerate(differences) if one.p is not None)
    found, least = list(differences), 0.0
    for rank, (p, index) in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - rank) * p))
        found[index] = differences[index].model_copy(update={"p_corrected": least})
    return found


def verdict(difference: Difference) -> str:
    """Say in words what was shown: "better" and "worse" than the other row, or why nothing was."""
    if not difference.seeds:
        return "no seed in common"
    if not difference.prompts:
        return "not asked the same"
    if difference.prompts < 2:
        return "too few prompts"
    if difference.seeds == 1 and not difference.seedless:
        return "one seed: nothing shown"
    if difference.p_corrected is None or difference.p_corrected > LEVEL:
        return "no difference shown"
    return "better" if difference.mean > 0 else "worse"
