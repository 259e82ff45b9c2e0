"""What launches runs: on this machine, or on a cluster's nodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from ftbench.execution.events import Event
from ftbench.recipe import Recipe
from ftbench.registry import Registry
from ftbench.results.result import Tuning
from ftbench.results.store import Run


@dataclass(frozen=True)
class Order:
    """A run that is to be made.

    Args:
        recipe: what to run.
        registry: the plugins.
        out: the folder of runs.
        baseline: the untouched model's run on the same task.
        tuning: how the recipe's learning rate was chosen; the result says it.
        save_every: seconds of training after which its state is kept again; 0: never.
        fresh: whether training begins anew, whatever is kept of it.
        report_to: the tools that are told of it; see `reporting.read_tools`.
    """

    recipe: Recipe
    registry: Registry
    out: Path
    baseline: Run | None = None
    tuning: Tuning | None = None
    save_every: float = 0.0
    fresh: bool = False
    report_to: tuple[str, ...] = ()


class Launcher(Protocol):
    """Makes runs, several at once from as many threads, each where there is room for it."""

    def __enter__(self) -> Self:
        """Get hold of what runs are made on.

        Raises:
            FtbenchError: it cannot be reached, or something is not installed.
        """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it."""

    def at_once(self, recipes: Sequence[Recipe]) -> int:
        """Return how many runs of these recipes may be asked for at the same time, at least 1."""

    def launch(self, order: Order, on_event: Callable[[Event], None]) -> Run:
        """Make a run and return it as it was published, whatever its end; waits until there is room for it.

        Args:
            order: the run to be made.
            on_event: is told how far it is.

        Raises:
            Stopped: `stop` was called meanwhile; only the state that its training was kept in is left of the run.
            FtbenchError: the folder of runs cannot be written, or nothing has room for the run.
        """

    def stop(self) -> None:
        """End all runs that are under way, and those that are asked for from now on."""
