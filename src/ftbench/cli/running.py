"""Runs recipes into a folder, each once, and shows how far they are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ftbench.cli.common import warn

if TYPE_CHECKING:
    from ftbench.cli.progress import RunsProgress
    from ftbench.execution.launcher import Launcher
    from ftbench.execution.reuse import Inputs
    from ftbench.recipe import Recipe
    from ftbench.registry import Registry
    from ftbench.results.result import Result, Tuning
    from ftbench.results.store import Run

SAVE_EVERY = 300.0
"""Seconds of training after which its state is kept again, unless somebody says otherwise."""


def one_machine() -> "Launcher":
    """Return what makes runs here, as many at once as there are devices."""
    from ftbench.execution.launchers import make_launcher

    return make_launcher("local")


def new_progress() -> "RunsProgress":
    """Return what shows runs."""
    from ftbench.cli.progress import RunsProgress

    return RunsProgress()


@dataclass(frozen=True)
class Runner:
    """Launches runs into `out`, and knows those that are `there` already, oldest first; may be used by many threads."""

    registry: "Registry"
    out: Path
    inputs: "Inputs"
    there: "tuple[Run, ...]"
    save_every: float = SAVE_EVERY
    fresh: bool = False
    report_to: tuple[str, ...] = ()
    launcher: "Launcher" = field(default_factory=one_machine)
    progress: "RunsProgress" = field(default_factory=new_progress)

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
        launcher: "Launcher | None" = None,
        progress: "RunsProgress | None" = None,
    ) -> "Runner":
        """Read the data and the model that all recipes share with `recipe`, and what is there, unless all is to be new.

        Raises:
            UsageError: no such data, topic or model.
            FtbenchError: they cannot be read, or hold too little; or what was kept for a URL cannot be sent there.
        """
        from ftbench.execution.reuse import read_inputs
        from ftbench.results.delivery import send_waiting
        from ftbench.results.store import read_runs

        send_waiting(out)
        inputs = read_inputs(recipe, registry)
        there: list[Run] = []
        if not fresh and out.is_dir():
            there, warnings = read_runs(out)
            warn(warnings)
        launcher, progress = launcher or one_machine(), progress or new_progress()
        return cls(registry, out, inputs, tuple(there), save_every, fresh, report_to, launcher, progress)

    def find(self, recipe: "Recipe", tuning: "Tuning | None" = None, baseline: "Run | None" = None) -> "Run | None":
        """Return the newest run of a recipe that ended well, if today's would come out the same.

        The rate that was sought may be the one that an algorithm has anyway: that it was sought has cost something all
        the same, and is said by a run of its own. A run that was measured against nothing lacks its forgetting; where
        there is a `baseline` today, it is none of them.
        """

        def ended(result: "Result") -> bool:
            is_measured = result.baseline is not None or result.measures.forgetting is not None
            return (
                result.status == "ok" and (is_measured or baseline is None) and _tried(result.tuning) == _tried(tuning)
            )

        return self._newest(recipe, ended)

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
        from ftbench.execution.launcher import Order

        order = Order(
            recipe, self.registry, self.out, baseline, tuning, self.save_every, self.fresh, report_to=self.report_to
        )
        with self.progress.watch(name) as on_event:
            return self.launcher.launch(order, on_event)

    def has_kept(self, recipe: "Recipe", run: "Run") -> bool:
        """Whether a run that came to nothing has left a state from which its training can go on."""
        from ftbench.execution.unfinished import is_of_use, state_file
        from ftbench.results.address import outbox

        return is_of_use(run.result.status) and state_file(recipe, outbox(self.out)).exists()


def _tried(tuning: "Tuning | None") -> list[tuple[float, int]]:
    return [] if tuning is None else [(trial.learning_rate, trial.tokens) for trial in tuning.trials]


def _diverged(result: "Result") -> bool:
    from ftbench.files import AGAIN

    return result.status == "failed" and result.phase == "train" and AGAIN not in (result.reason or "")
