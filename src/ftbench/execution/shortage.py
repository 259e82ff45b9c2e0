"""What is said of a run that memory was too small for."""

import re

from ftbench.execution.facts import Facts
from ftbench.memory.budget import LARGEST, UNITS, budget_for, format_bytes
from ftbench.memory.fit import exhaustion
from ftbench.recipe import Recipe

UNKNOWN = "how much would do is not known"
# Of torch's allocators on the CPU and on CUDA, and of numpy.
_REFUSED = re.compile(r"(?:tried|unable) to allocate (\d+(?:\.\d+)?) ?(bytes|[kmgt]?i?b)\b", re.IGNORECASE)


def explain_shortage(error: BaseException, recipe: Recipe, facts: Facts) -> str:
    """Say in one line which allocation failed, and what budget would do."""
    budget = f" under a budget of {format_bytes(recipe.memory_budget)}" if recipe.memory_budget else ""
    error = exhaustion(error) or error
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return f"an allocation failed{budget}; {_advise(error, recipe, facts)}: {text}"


def _advise(error: BaseException, recipe: Recipe, facts: Facts) -> str:
    plan = facts.memory_plan
    if plan and plan.needed_bytes and not plan.fits:
        return f"{format_bytes(plan.needed_bytes)} should do (predicted)"
    budget, refused = recipe.memory_budget or 0, refused_bytes(str(error))
    needed = _estimate(refused, recipe, facts)
    if refused and 0 < budget >= needed:  # more was there than is known of: nearly all that the budget allows
        needed = budget + max(refused, budget // 10)
    if not budget < needed <= LARGEST:
        return UNKNOWN
    return f"{format_bytes(needed)} may do (from what was there when it failed)"


def _estimate(refused: int, recipe: Recipe, facts: Facts) -> int:
    """Return a budget for what is known to have been in memory at once and for what was refused; 0: nothing is."""
    if facts.meter is None:
        return 0
    predicted = (facts.memory_plan.predicted_bytes if facts.memory_plan else None) or 0
    counted = [parts.total for parts in facts.meter.tensors.values()]
    there = max([facts.weight_bytes // recipe.devices, predicted, *counted])
    return budget_for(there + refused, facts.meter.device.type) if there else 0


def refused_bytes(text: str) -> int:
    """Return how much an allocator says that it could not give, however absurd; 0 where it does not say."""
    found = _REFUSED.search(text)
    if found is None:
        return 0
    unit = found[2].lower()
    return int(float(found[1]) * (1 if unit == "bytes" else UNITS[unit]))
