"""Runs recipes into a folder, each once, and shows how far they are."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftbench.cli.common import warn

if TYPE_CHECKING:
    from ftbench.execution.reuse import Inputs
    from ftbench.recipe import Recipe
    from ftbench.registry import Registry
    from ftbench.results.result import Result, Tuning
    from ftbench.results.store import Run

SAVE_EVERY = 300.0
"""Seconds of training after which its state is kept again, unless somebody says otherwise."""


@dataclass(frozen=True)
class Runner:
    """Launches runs into `out`, and knows those that are `there` already, oldest first."""

    registry: "Registry"
    out: Path
    inputs: "Inputs"
    there: "tuple[Run, ...]"
    save_every: float = SAVE_EVERY
    fresh: bool = False
    report_to: tuple[str, ...] = ()

    @classmethod
    def begin(
        cls,
        recipe: "Recipe",
        registry: "Registry",
        out: Path,
        *,
        fresh: bool,
        save_every: float = SAVE_EVERY,
        report_to: tuple[str, ...] = (),
    ) -> "Runner":
        """Read the data and the model that all recipes share with `recipe`, and what is there, unless all is to be new.

        Raises:
            UsageError: no such data, topic or model.
            FtbenchError: they cannot be read, or hold too little.
        """
        from ftbench.execution.reuse import read_inputs
        from ftbench.results.store import read_runs

        inputs = read_inputs(recipe, registry)
        if fresh or not out.is_dir():
            return cls(registry, out, inputs, (), save_every, fresh, report_to)
        found, warnings = read_runs(out)
        warn(warnings)
        return cls(registry, out, inputs, tuple(found), save_every, fresh, report_to)

    def find(self, recipe: "Recipe", tuning: "Tuning | None" = None) -> "Run | None":
        """Return the newest run of a recipe that ended well, if today's would come out the same.

        The rate that was sought may be the one that an algorithm has anyway: that it was sought has cost something all
        the same, and is said by a run of its own.
        """
        return self._newest(recipe, lambda result: result.status == "ok" and _tried(result.tuning) == _tried(tuning))

    def find_trial(self, recipe: "Recipe") -> "Run | None":
        """Return the newest run of a trial; one whose loss became infinite would do so again."""
        return self._newest(recipe, lambda result: result.status == "ok" or _diverged(result))

    def _newest(self, recipe: "Recipe", ended: "Callable[[Result], bool]") -> "Run | None":
        from ftbench.execution.reuse import still_holds

        digest = recipe.digest()
        fitting = (run for run in reversed(self.there) if run.result.recipe_digest == digest and ended(run.result))
        return next((run for run in fitting if still_holds(run.result, self.inputs)), None)

    def launch(
        self, recipe: "Recipe", name: str, baseline: "Run | None" = None, tuning: "Tuning | None" = None
    ) -> "Run":
        """Run a recipe, showing its progress under a name."""
        from ftbench.cli.progress import RunProgress
        from ftbench.execution.local import launch

        with RunProgress(name) as progress:
            return launch(
                recipe,
                self.registry,
                self.out,
                baseline,
                progress,
                tuning,
                save_every=self.save_every,
                fresh=self.fresh,
                report_to=self.report_to,
            )


def _tried(tuning: "Tuning | None") -> list[tuple[float, int]]:
    return [] if tuning is None else [(trial.learning_rate, trial.tokens) for trial in tuning.trials]


def _diverged(result: "Result") -> bool:
    return result.status == "failed" and result.phase == "train"
