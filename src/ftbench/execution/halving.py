"""Successive halving on a fixed grid (Jamieson & Talwalkar 2016, arXiv:1502.07943), kept by Optuna (Akiba et al. 2019).

Imported where it is used: Optuna is an extra.
"""

from collections.abc import Callable, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

RATE = "learning_rate"


class _BestOfRung(optuna.pruners.BasePruner):
    """Lets the best of a rung go on to the next, the lower rate where two are equal.

    Optuna's own pruner of that name compares a candidate with those before it alone, as suits many workers: what is
    spent then hangs on the order. Here a rung is compared when all of it is there, and every study spends the same.
    """

    def __init__(self, rungs: Sequence[int]) -> None:
        self._rungs = rungs

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or step + 1 >= len(self._rungs):
            return False
        others = [other for other in study.get_trials(deepcopy=False) if step in other.intermediate_values]
        best = sorted(others, key=lambda other: (-other.intermediate_values[step], other.params[RATE]))
        return trial.number not in [other.number for other in best[: self._rungs[step + 1]]]


def halve(rates: Sequence[float], rungs: Sequence[int], score: Callable[[float, int], float | None]) -> float | None:
    """Return the best rate of the highest rung that any came to the end of, the lower where two are equal.

    Args:
        rates: the candidates, all above 0.
        rungs: how many candidates each has room for, the first for all.
        score: tries a candidate on a rung, by its number; more is better, None where it came to no end.

    Returns:
        None where no candidate came to an end.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", pruner=_BestOfRung(rungs))
    for rate in sorted(rates):
        study.enqueue_trial({RATE: rate})
    grid = optuna.distributions.FloatDistribution(min(rates), max(rates), log=True)
    running = [study.ask({RATE: grid}) for _ in rates]
    for step in range(len(rungs)):
        ended = {}
        for trial in running:
            value = score(trial.params[RATE], step)
            if value is None:
                study.tell(trial, state=TrialState.FAIL)
            else:
                trial.report(value, step)
                ended[trial] = value
        running = [trial for trial in ended if not trial.should_prune()]
        for trial, value in ended.items():
            if step + 1 == len(rungs):
                study.tell(trial, value)
            elif trial not in running:
                study.tell(trial, state=TrialState.PRUNED)
    found = [trial for trial in study.get_trials() if trial.state != TrialState.FAIL]
    best = max(found, key=_reached, default=None)
    return None if best is None else best.params[RATE]


def _reached(trial: FrozenTrial) -> tuple[int, float, int]:
    """Rank trials: by how far they came, by what they reached there, the lower rate first."""
    assert trial.last_step is not None
    return trial.last_step, trial.intermediate_values[trial.last_step], -trial.number
