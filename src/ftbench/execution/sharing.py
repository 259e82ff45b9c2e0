"""What a run's reference finds is kept for all runs of this machine that would find the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from ftbench.algorithm import Algorithm
from ftbench.execution.once import once
from ftbench.memory.meter import Highest, Meter
from ftbench.recipe import Recipe
from ftbench.results.result import Environment
from ftbench.training.sharing import Scored, Share


@dataclass(frozen=True)
class _Kept:
    """What was found, and the peaks of the memory of the run that found it meanwhile."""

    scored: Scored
    highest: Highest


def share_references(algorithm: Algorithm, recipe: Recipe, environment: Environment, meter: Meter) -> Share:
    """Return how a run comes by what its reference finds.

    It takes what was found on the same hardware, with the same threads, precision, versions, code and memory budget,
    and with it the peaks of memory that finding it had.

    Args:
        algorithm: whose model is the reference.
        recipe: of the run.
        environment: of the run.
        meter: of the run, in the phase in which the reference is scored.
    """

    def take(of: Mapping[str, Any], find: Callable[[], Scored]) -> Scored:
        place = {"environment": environment.model_dump(mode="json"), "budget": recipe.memory_budget}
        kept = once("reference", {**of, **place}, TypeAdapter(_Kept), lambda: _Kept(*meter.apart(find)))
        meter.hold(kept.highest)
        return kept.scored

    return Share(take, algorithm.without_effect)
