"""All runs that one command asks for: what waits for what, and the lines that say how each ended."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftbench.cli.running import Runner
from ftbench.cli.tuning import Tuner

if TYPE_CHECKING:
    from ftbench.execution.estimate import Estimator
    from ftbench.execution.scheduling import Task
    from ftbench.recipe import Recipe
    from ftbench.results.store import Run


@dataclass
class Batch:
    """Recipes to run, each once; the untouched model's first, against which the others are measured."""

    recipes: "list[Recipe]"
    runner: Runner
    tuner: Tuner | None = None
    _runs: "dict[int, Run]" = field(default_factory=dict)

    def carry_out(self) -> "list[Run]":
        """Make all runs, and return them in the recipes' order.

        Raises:
            FtbenchError: runs can be made or written no more.
        """
        from ftbench.execution.scheduling import carry_out

        with self.runner.launcher as launcher:
            carry_out(self._tasks(), launcher.at_once(self.recipes), launcher.stop)
        return [self._runs[index] for index in range(len(self.recipes))]

    def _tasks(self) -> "list[Task]":
        from ftbench.execution.estimate import Estimator
        from ftbench.execution.scheduling import Task
        from ftbench.recipe import BASELINE

        guess = Estimator(self.runner.registry, self.runner.there)
        tasks: list[Task] = []
        baselines: list[Task] = []
        tunings: dict[str, Task] = {}
        for index, recipe in enumerate(self.recipes):
            is_baseline = recipe.algorithm == BASELINE
            after = [] if is_baseline else list(baselines)
            if self.tuner and recipe.algorithm in self.tuner.by:
                if recipe.algorithm not in tunings:
                    tunings[recipe.algorithm] = _tuning(self.tuner, recipe, guess)
                    tasks.append(tunings[recipe.algorithm])
                after.append(tunings[recipe.algorithm])
            task = Task(lambda index=index: self._make(index), guess.seconds(recipe), after)  # type: ignore[misc]
            tasks.append(task)
            if is_baseline:
                baselines.append(task)
        return tasks

    def _make(self, index: int) -> None:
        """Make one run, unless it is there already."""
        from ftbench.recipe import BASELINE

        asked = self.recipes[index]
        recipe, tuning = self.tuner.tuned(asked) if self.tuner else (asked, None)
        name, say = self._name(recipe), self.runner.progress.say
        baseline = self._baseline()
        run = self.runner.find(recipe, tuning, None if recipe.algorithm == BASELINE else baseline)
        if run is not None:
            say(f"{name}: already there: {run.folder} (--fresh runs it again)")
        else:
            unmeasured = self.runner.find(recipe, tuning)
            if unmeasured:
                say(f"{name}: run again, for {unmeasured.folder} has no forgetting: there was no {BASELINE} then")
            run = self.runner.launch(recipe, name, baseline, tuning)
            reason = f": {run.result.reason}" if run.result.reason else ""
            say(f"{name}: {run.result.status}{reason} ({run.folder})")
            for line in run.result.warnings:
                say(f"warning: {line}")
            if self.runner.has_kept(recipe, run):
                say(f"{name}: the state of its training is kept: the same command goes on from it")
        self._runs[index] = run

    def _baseline(self) -> "Run | None":
        from ftbench.recipe import BASELINE

        runs = list(self._runs.values())
        ended = [run for run in runs if run.result.recipe.algorithm == BASELINE and run.result.status == "ok"]
        return ended[-1] if ended else None

    def _name(self, recipe: "Recipe") -> str:
        """What the lines about a run begin with: the algorithm, and what else tells it from the others."""
        from ftbench.memory.budget import format_bytes

        parts = [recipe.algorithm]
        budgets = {other.memory_budget for other in self.recipes if other.algorithm == recipe.algorithm}
        if len(budgets) > 1 and recipe.memory_budget:
            parts.append(format_bytes(recipe.memory_budget))
        if recipe.seed:
            parts.append(f"seed {recipe.seed}")
        return ", ".join(parts)


def _tuning(tuner: Tuner, recipe: "Recipe", guess: "Estimator") -> "Task":
    from ftbench.execution.scheduling import Task
    from ftbench.execution.tuning import RUNGS, trial_recipe

    trials = sum(room * guess.seconds(trial_recipe(recipe, 1.0, rung)) for rung, (_, room) in enumerate(RUNGS))

    def tune() -> None:
        tuner.tuned(recipe)

    return Task(tune, trials)
