"""Which runs can be compared: those that share their terms."""

import json
from collections.abc import Sequence

from ftbench.recipe import Recipe
from ftbench.results.result import Result
from ftbench.results.store import Run

_Identity = tuple[str, str, int, bool]
_Terms = tuple[str, ...]


def comparable(runs: Sequence[Run]) -> list[list[Run]]:
    """Put comparable runs together; of repeated runs of one recipe the newest ok one counts (else the newest).

    The same recipe on other hardware, or over data or a model that changed since, is no repetition.

    Args:
        runs: oldest first.

    Returns:
        Sets of runs, none empty; the first of each knows all its terms where any does.
    """
    grouped: dict[_Terms, list[Run]] = {}
    for own, run in sorted(_newest(runs), key=lambda held: len(_unknown(held[1].result))):
        if own not in grouped and _unknown(run.result):
            own = next((found for found, group in grouped.items() if _fits(run.result, group)), own)
        grouped.setdefault(own, []).append(run)
    return list(grouped.values())


def _newest(runs: Sequence[Run]) -> list[tuple[_Terms, Run]]:
    """Leave out repetitions; return each run with its terms, which take a while to write for thousands.

    A run that ended early is repeated by one with which it agrees as far as it got: not by one on another machine.
    """
    kept: dict[_Identity, list[tuple[dict[str, str], Run]]] = {}
    for run in sorted(runs, key=lambda run: run.result.status == "ok"):
        own = terms(run.result)
        beside = kept.setdefault(_identity(run), [])
        beside[:] = [(other, held) for other, held in beside if not _agree(other, held.result, own, run.result)]
        beside.append((own, run))
    return [(tuple(own.values()), run) for each in kept.values() for own, run in each]


def _agree(one: dict[str, str], result: Result, other: dict[str, str], beside: Result) -> bool:
    """Whether two results have the same terms, of those that both got to know."""
    unknown = _unknown(result) | _unknown(beside)
    return all(one[term] == other[term] for term in one if term not in unknown)


def _identity(run: Run) -> _Identity:
    """Name a recipe, and whether its rate was sought: it may be the one that the algorithm has anyway.

    Algorithm and seed are a part of the digest; where that was edited by hand, no run falls out all the same.
    """
    result = run.result
    return result.recipe_digest, result.recipe.algorithm, result.recipe.seed, result.tuning is not None


def _unknown(result: Result) -> set[str]:
    """Name the terms that a run which ended early did not get to measure."""
    return {term for term, fact in _MEASURED_TERMS.items() if getattr(result, fact) is None}


def _fits(result: Result, group: Sequence[Run]) -> bool:
    """Whether a run that ended early was asked the same as a group, and found nothing else as far as it got."""
    own, common, unknown = terms(result), terms(group[0].result), _unknown(result)
    same = all(own[term] == common[term] for term in own if term not in unknown)
    return same and any(_asked(result) == _asked(run.result) for run in group)


def terms(result: Result) -> dict[str, str]:
    """Return what two results must share to stand in one table."""
    recipe = result.recipe
    return {
        "model": recipe.model + (f" ({result.model_digest[:8]})" if result.model_digest else ""),
        "data": (result.data.origin if result.data else recipe.data)
        + (f" ({result.data.digest[:8]})" if result.data else ""),
        "task": f"{recipe.task} '{recipe.topic}'",
        "training": _length(recipe) + f", {recipe.effective_batch_size} {_prompts(recipe)} a step, "
        f"{recipe.max_length} tokens at most, weight decay {recipe.weight_decay:g}, warm-up {recipe.warmup:g}, "
        f"gradient norm {recipe.max_grad_norm:g}, micro-batches of {recipe.micro_batch_tokens:,} tokens at most",
        "evaluation": (f"{result.data.evaluation_prompts} {_held_out(recipe)}, " if result.data else "")
        + f"greedy, {recipe.max_new_tokens} tokens at most",
        "judge": f"{result.judge.version} ({result.judge.digest[:8]}), AUC {result.judge.auc:.3f}"
        if result.judge
        else "?",
        "hardware": (f"{recipe.devices} times " if recipe.devices > 1 else "")
        + f"{result.environment.hardware}, {result.environment.cores} cores, {result.environment.precision}"
        if result.environment
        else "?",
    }


def _prompts(recipe: Recipe) -> str:
    return "prompt" if recipe.effective_batch_size == 1 else "prompts"


def _held_out(recipe: Recipe) -> str:
    return "prompts" if recipe.split == "evaluation" else f"{recipe.split} prompts"


def _length(recipe: Recipe) -> str:
    """What all rows have the same of: tokens or time."""
    if recipe.training_seconds is None:
        return f"{recipe.tokens:,} tokens"
    return f"{recipe.training_seconds:g} s or {recipe.tokens:,} tokens, whichever ends first"


_MEASURED_TERMS = {
    "model": "model_digest",
    "data": "data",
    "evaluation": "data",
    "judge": "judge",
    "hardware": "environment",
}
"""Terms that the recipe alone does not tell, and the fact of a result that does."""


def _asked(result: Result) -> str:
    """What the recipe asks, apart from the algorithm and the seed."""
    return json.dumps(
        result.recipe.model_dump(
            exclude={"name", "algorithm", "options", "start", "seed", "time_limit", "memory_budget"}
        ),
        sort_keys=True,
    )
