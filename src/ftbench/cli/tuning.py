"""`ftbench run --tune`: learning rates are sought, each algorithm's once, before its first run."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ftbench.cli.running import Runner

if TYPE_CHECKING:
    from ftbench.cli.progress import RunsProgress
    from ftbench.execution.launcher import Launcher
    from ftbench.recipe import Recipe
    from ftbench.registry import Registry
    from ftbench.results.result import Tuning
    from ftbench.results.store import Run


@dataclass
class Tuner:
    """Knows the recipe that each algorithm is tuned by, and what came of it; may be asked by many threads."""

    runner: Runner
    by: "dict[str, Recipe]"
    done: "dict[str, Tuning | None]" = field(default_factory=dict)
    _one_at_a_time: "defaultdict[str, threading.Lock]" = field(default_factory=lambda: defaultdict(threading.Lock))

    @classmethod
    def begin(
        cls,
        recipes: "Sequence[Recipe]",
        registry: "Registry",
        out: Path,
        *,
        fresh: bool,
        launcher: "Launcher | None" = None,
        progress: "RunsProgress | None" = None,
    ) -> "Tuner | None":
        """Make ready to tune these recipes; None where there are none.

        Raises:
            UsageError: they cannot be tuned.
            FtbenchError: the data are too few to set prompts aside.
        """
        from ftbench.execution.tuning import FOLDER, check_tunable
        from ftbench.results.mirror import inside

        if not recipes:
            return None
        check_tunable(recipes)
        seed = recipes[0].seed
        by: dict[str, Recipe] = {}
        for recipe in sorted((recipe for recipe in recipes if recipe.seed == seed), key=_budget):
            by[recipe.algorithm] = recipe  # the largest budget is the last
        validation = recipes[0].change(split="validation")
        place = inside(out, FOLDER)
        runner = Runner.begin(validation, registry, place, fresh=fresh, launcher=launcher, progress=progress)
        return cls(runner, by)

    def tuned(self, recipe: "Recipe") -> "tuple[Recipe, Tuning | None]":
        """Return the recipe with the rate that was found for its algorithm, and how; as it is where there is none."""
        from ftbench.algorithm import with_rate

        name = recipe.algorithm
        if name not in self.by:
            return recipe, None
        with self._one_at_a_time[name]:
            if name not in self.done:
                self.done[name] = self._tune(self.by[name])
        tuning = self.done[name]
        if tuning is None:
            return recipe, None
        return recipe.change(options=with_rate(recipe.options, tuning.learning_rate)), tuning

    def _tune(self, recipe: "Recipe") -> "Tuning | None":
        from ftbench.execution.tuning import tune

        def attempt(trial: "Recipe") -> "Run":
            return self.runner.find_trial(trial) or self.runner.launch(trial, f"{recipe.algorithm}, tuning")

        return tune(recipe, attempt, lambda line: self.runner.progress.say(f"{recipe.algorithm}, tuning: {line}"))


def _budget(recipe: "Recipe") -> int:
    return recipe.memory_budget or 0
