"""How long a run will take, to know which to begin with."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ftbench.recipe import Recipe
from ftbench.registry import Registry
from ftbench.results.store import Run

TOKENS_PER_SECOND = 200.0
"""Where nothing was ever run: the default model's on two cores. What matters is how recipes compare."""
OWN_TRAINER = 2.0
"""Times that a trainer of an algorithm's own takes as long: padding, and checkpointing where there is room."""
REMAINDER = 60.0
"""Seconds of a run beside training, where nothing was ever run."""


@dataclass(frozen=True)
class Estimator:
    """Guesses from the runs that are `there`."""

    registry: Registry
    there: Sequence[Run]

    def seconds(self, recipe: Recipe) -> float:
        """Return about how many seconds the run of a recipe takes."""
        known = [run for run in self.there if run.result.status == "ok" and run.result.recipe.model == recipe.model]
        alike = [run for run in known if run.result.recipe.algorithm == recipe.algorithm]
        kind = self.registry.find(recipe.algorithm)
        beside = median([_beside(run) for run in alike or known] or [REMAINDER])
        if kind.needs == "nothing":
            training = 0.0
        else:
            rates = [rate for run in alike if (rate := _per_token(run))]
            others = [rate for run in known if (rate := _per_token(run))]
            weight = 1.0 if rates or not kind.own_trainer else OWN_TRAINER
            training = recipe.tokens * weight * median(rates or others or [1 / TOKENS_PER_SECOND])
        limits = [limit for limit in (recipe.training_seconds,) if limit is not None]
        return min([min([training, *limits]) + beside, recipe.time_limit or float("inf")])


def _beside(run: Run) -> float:
    measures = run.result.measures
    return max(0.0, (measures.run_seconds or 0.0) - (measures.training_seconds or 0.0))


def _per_token(run: Run) -> float | None:
    """Seconds of training a token."""
    measures = run.result.measures
    if not measures.training_tokens or not measures.training_seconds:
        return None
    return measures.training_seconds / measures.training_tokens
