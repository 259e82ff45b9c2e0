"""Chooses an algorithm's learning rate on validation prompts, which no evaluation asks.

Every algorithm is given the same: five rates around its own, and of the recipe's tokens a quarter for each of them, a
half for the best three, all for the best two, together 4.75 times as many. On every rung a rate is trained anew, with
a whole schedule of that length: how well a long training began says little of how a short one ends.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ftbench.algorithm import rate_of, with_rate
from ftbench.errors import UsageError
from ftbench.evaluation.evaluate import EvaluatedPrompt
from ftbench.evaluation.statistics import unlike_others
from ftbench.recipe import Recipe
from ftbench.results.result import Trial, Tuning
from ftbench.results.store import MODEL, Run

FOLDER = "tuning"
"""Inside the folder of runs: trials are runs like others, but for the models, which nobody needs."""
FACTORS = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)
RUNGS = ((0.25, 5), (0.5, 3), (1.0, 2))
"""Share of the recipe's tokens, and how many rates are given so much."""


@dataclass(frozen=True)
class Score:
    """How good a trial's replies are.

    `share` is that of the replies which are on topic and unlike every other: a model that says one sentence to all
    has none. Forgetting is no part of it: how much of it a better reply is worth is for the reader of the table.
    """

    share: float
    judge_score: float
    prompts: int

    @classmethod
    def of(cls, items: Sequence[EvaluatedPrompt]) -> "Score":
        """Score the replies to all prompts."""
        unlike = unlike_others([item.reply for item in items])
        useful = sum(item.on_topic and alone for item, alone in zip(items, unlike, strict=True))
        return cls(useful / len(items), sum(item.score for item in items) / len(items), len(items))

    @property
    def standing(self) -> float:
        """One number to rank by: any more useful replies count more than the judge's mean score, which is 1 at most."""
        return self.share * self.prompts + self.judge_score / 2


def check_tunable(recipes: Sequence[Recipe]) -> None:
    """See that the rates of these recipes can be sought.

    Raises:
        UsageError: Optuna is missing, a run is to start from another's model, or a learning rate is not above 0.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UsageError('--tune needs Optuna, which is not installed; pip install "ftbench[tune]"') from error
    for recipe in recipes:
        if recipe.start is not None:
            raise UsageError(
                "--tune and --from: the run to start from was trained on the validation prompts; tune that run, "
                f"or set the rate: --set {recipe.algorithm}.learning_rate=…"
            )
        rate = rate_of(recipe.options)
        if rate is None or not (math.isfinite(rate) and rate > 0):
            raise UsageError(f"--tune: {recipe.algorithm} has no learning rate above 0 to start from (got {rate})")


def grid(rate: float) -> list[float]:
    """Return the rates to try, from the lowest, in two digits but for the middle one, which is `rate` itself."""
    return [rate if factor == 1 else float(f"{rate * factor:.1e}") for factor in FACTORS]


def tune(recipe: Recipe, attempt: Callable[[Recipe], Run], say: Callable[[str], None]) -> Tuning | None:
    """Choose the learning rate for a recipe by synchronous successive halving.

    Args:
        recipe: as it will be run; its seed and memory budget are those of the trials.
        attempt: runs a recipe to its end, or finds the run that did.
        say: is told a line a trial, and the outcome.

    Returns:
        None where the algorithm declines, or no trial came to its end.
    """
    from ftbench.execution.halving import halve

    rate = rate_of(recipe.options)
    assert rate is not None
    search, rates = _Search(recipe, attempt, say), grid(rate)
    try:
        chosen = halve(rates, [candidates for _, candidates in RUNGS], search.score)
    except _DeclinedError as declined:
        say(f"not tuned: {declined}")
        return None
    if chosen is None:
        say("not tuned: no trial came to its end")
        return None
    tuning = search.outcome(chosen)
    say(f"learning rate {chosen:g} chosen; tuning took {tuning.tokens:,} tokens and {tuning.seconds:,.0f} s")
    if not any(trial.score for trial in search.trials):
        say("warning: at no rate was a single reply of use; the judge's mean score chose")
    if chosen in (rates[0], rates[-1]):
        which, other = ("lowest", "lower") if chosen == rates[0] else ("highest", "higher")
        say(f"warning: the best rate is the {which} tried, and a {other} one may be better: set it, and tune around it")
    return tuning


def trial_recipe(recipe: Recipe, rate: float, rung: int) -> Recipe:
    """Return what is run to try a rate on a rung."""
    share = RUNGS[rung][0]
    seconds = recipe.training_seconds
    return recipe.change(
        options=with_rate(recipe.options, rate),
        tokens=math.ceil(recipe.tokens * share),
        training_seconds=None if seconds is None else seconds * share,
        split="validation",
        attack_prompts=0,
        checkpoints=0,
    )


class _DeclinedError(Exception):
    """The algorithm does not apply."""


@dataclass
class _Search:
    recipe: Recipe
    attempt: Callable[[Recipe], Run]
    say: Callable[[str], None]
    trials: list[Trial] = field(default_factory=list)
    prompts: int = 0

    def score(self, rate: float, rung: int) -> float | None:
        """Try a rate on a rung."""
        recipe = trial_recipe(self.recipe, rate, rung)
        run = self.attempt(recipe)
        shutil.rmtree(run.folder / MODEL, ignore_errors=True)
        result = run.result
        if result.status == "skipped":
            raise _DeclinedError(f"skipped: {result.reason}")
        found = Score.of(run.replies()) if result.status == "ok" else None
        trial = Trial(
            learning_rate=rate,
            tokens=recipe.tokens,
            status=result.status,
            score=found.share if found else None,
            judge_score=found.judge_score if found else None,
            seconds=result.measures.run_seconds or 0.0,
            run=run.folder.name,
        )
        self.trials.append(trial)
        self.prompts = found.prompts if found else self.prompts
        self.say(
            f"rate {rate:g}, {recipe.tokens:,} tokens: {_outcome(run, found)} ({trial.seconds:.0f} s, {run.folder})"
        )
        return found.standing if found else None

    def outcome(self, chosen: float) -> Tuning:
        """Put what was tried into the result's words."""
        return Tuning(
            learning_rate=chosen,
            seed=self.recipe.seed,
            validation_prompts=self.prompts,
            trials=self.trials,
            tokens=sum(trial.tokens for trial in self.trials),
            seconds=sum(trial.seconds for trial in self.trials),
        )


def _outcome(run: Run, score: Score | None) -> str:
    if score is None:
        return f"{run.result.status}: {run.result.reason}"
    return f"{score.share:.2f} of {score.prompts} validation prompts, judge {score.judge_score:.2f}"
