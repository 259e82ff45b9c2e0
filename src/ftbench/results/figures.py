"""The figures of rows: what several seeds measured, as one value with its interval.

Rows of as many seeds and prompts are worked out together: numpy takes longer to be called than to work out one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

from ftbench.evaluation.crossed import mean_over_seeds, ratio_over_seeds, ratios_over_seeds, shares_over_seeds
from ftbench.evaluation.statistics import Measured
from ftbench.results.result import Outcomes
from ftbench.results.store import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Table = NDArray[Any]

_Seeds = Sequence[Run]


def over_seeds(runs: _Seeds, name: str) -> Measured | None:
    """Return the mean of a figure that each seed has one of; None where none has."""
    found = [getattr(run.result.measures, name) for run in runs]
    values = [value.mean if isinstance(value, Measured) else value for value in found if value is not None]
    if not values:
        return None
    if len(values) == 1:
        return found[0] if isinstance(found[0], Measured) else Measured(mean=values[0])
    return mean_over_seeds(values)


@dataclass(frozen=True)
class OverPrompts:
    """A row's figures whose interval is over prompts as well as seeds."""

    adherence: Measured | None
    under_attack: Measured | None
    forgetting: Measured | None


def over_prompts(rows: Sequence[_Seeds]) -> list[OverPrompts]:
    """Work out these figures of every row, which is the runs of one recipe, one of every seed."""
    adherence = _shares(rows, "on_topic", "adherence")
    under_attack = _shares(rows, "attacks_on_topic", "adherence_under_attack")
    return [OverPrompts(*each) for each in zip(adherence, under_attack, _forgetting(rows), strict=True)]


def _shares(rows: Sequence[_Seeds], outcomes: str, name: str) -> list[Measured | None]:
    """Return each row's share over seeds and prompts; one run's own is its own.

    Args:
        rows: the runs of each.
        outcomes: what is counted, by its name in Outcomes.
        name: of the same figure in Measures, for rows whose runs were not asked the same.
    """
    found: dict[int, Measured] = {}
    for (_, prompts), alike in _by_size(rows, outcomes).items():
        if prompts > 1:
            import numpy as np

            tables = np.stack([_verdicts(each, outcomes) for each in alike.values()])
            found |= zip(alike, shares_over_seeds(tables), strict=True)
    return [found[place] if place in found else over_seeds(runs, name) for place, runs in enumerate(rows)]


def _forgetting(rows: Sequence[_Seeds]) -> list[Measured | None]:
    """Return each row's forgetting over seeds and prompts, as far as these are known of every seed."""
    found: dict[int, Measured] = {}
    for (seeds, prompts), alike in _by_size(rows, "rise", "ordinary_tokens").items():
        import numpy as np

        outcomes = [each for row in alike.values() for each in row]
        shape = (len(alike), seeds, prompts)
        sums = np.array([each.rise for each in outcomes], float).reshape(shape)  # None becomes NaN
        tokens = np.array([each.ordinary_tokens for each in outcomes], float).reshape(shape)
        known = np.isfinite(sums).all(axis=1) & (tokens > 0).all(axis=1)
        whole = known.all(axis=1) & (prompts > 1)
        for index, place in enumerate(alike):
            if not whole[index] and known[index].sum() > 1:
                chosen = (slice(None), known[index])
                found[place] = ratio_over_seeds(sums[index][chosen], tokens[index][chosen])
        if whole.any():
            together = ratios_over_seeds(_seeds_inmost(sums[whole]), _seeds_inmost(tokens[whole]))
            found |= zip(compress(alike, whole), together, strict=True)
    return [found[place] if place in found else over_seeds(runs, "forgetting") for place, runs in enumerate(rows)]


def _seeds_inmost(tables: "Table") -> "Table":
    """Lay tables out as numpy does what is chosen of their columns: the last digit of a sum hangs on the order."""
    import numpy as np

    return np.ascontiguousarray(tables.transpose(0, 2, 1)).transpose(0, 2, 1)


def verdicts(runs: _Seeds, name: str) -> "Table | None":
    """Return what became of each prompt under each seed, `[seed, prompt]`; None where they were not asked the same."""
    found = _alike(runs, name)
    return None if found is None else _verdicts(found, name)


def _verdicts(outcomes: Sequence[Outcomes], name: str) -> "Table":
    import numpy as np

    said = b"".join(bytes(getattr(each, name)) for each in outcomes)  # numpy takes twice as long over lists of lists
    return np.frombuffer(said, bool).reshape(len(outcomes), len(said) // len(outcomes))


def _by_size(rows: Sequence[_Seeds], *names: str) -> dict[tuple[int, int], dict[int, list[Outcomes]]]:
    """Return the outcomes of rows of several seeds that were asked the same: by seeds and prompts, then by place."""
    found: dict[tuple[int, int], dict[int, list[Outcomes]]] = {}
    for place, runs in enumerate(rows):
        outcomes = _alike(runs, *names) if len(runs) > 1 else None
        if outcomes is not None:
            found.setdefault((len(runs), len(getattr(outcomes[0], names[0]))), {})[place] = outcomes
    return found


def _alike(runs: _Seeds, *names: str) -> list[Outcomes] | None:
    """Return the outcomes of runs that were asked the same, and hold as many of each name; None where they do not."""
    found = [run.result.outcomes for run in runs]
    known = [each for each in found if each is not None]
    prompts = "attacks" if names == ("attacks_on_topic",) else "prompts"
    asked = {(getattr(each, prompts), *(len(getattr(each, name)) for name in names)) for each in known}
    return known if len(known) == len(found) and len(asked) == 1 else None
