"""One try at a run on a node of a cluster: the same worker, and nothing published that an earlier try has published.

What goes to a node and comes back is JSON; the node reads recipe and baseline anew.
"""

import os
import platform
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ftbench.errors import FtbenchError
from ftbench.execution.events import Event
from ftbench.execution.launcher import Order
from ftbench.execution.local import Place, launch
from ftbench.execution.once import source_digest
from ftbench.execution.slots import THREADS
from ftbench.files import disk_error
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.registry import Registry
from ftbench.results.address import outbox, url_of
from ftbench.results.delivery import deliver
from ftbench.results.mirror import Mirror
from ftbench.results.result import Tuning
from ftbench.results.store import Run, of_launch, read_run, run_name, staging

_PROBE = ".shared-"
_STAGED = ".unfinished-*"


class Ticket(BaseModel):
    """An order as it travels."""

    model_config = ConfigDict(frozen=True)

    ident: str
    recipe: Recipe
    plugin: str
    plugin_version: str
    code: str
    out: Path
    url: str | None
    probe: str
    folder: Path
    files: tuple[Path, ...]
    baseline: Path | None
    tuning: Tuning | None
    save_every: float
    fresh: bool
    report_to: tuple[str, ...]
    threads: int

    @classmethod
    def write(cls, order: Order, ident: str, probe: str, threads: int) -> "Ticket":
        """Write down an order; `probe` is a file in `out` that a node sees if it shares the folder.

        Where `out` mirrors a URL, each node has a mirror of its own.
        """
        plugin = order.registry.plugin_of(order.recipe.algorithm)
        return cls(
            ident=ident,
            recipe=order.recipe,
            plugin=plugin.name,
            plugin_version=plugin.version,
            code=source_digest(),
            out=order.out.resolve(),
            url=url_of(order.out),
            probe=probe,
            folder=Path.cwd(),
            files=_local_files(order.recipe),
            baseline=order.baseline.folder.resolve() if order.baseline else None,
            tuning=order.tuning,
            save_every=order.save_every,
            fresh=order.fresh and url_of(order.out) is not None,  # of a shared folder the state is gone already
            report_to=order.report_to,
            threads=threads,
        )


def attempt(ticket: Ticket, on_event: Callable[[Event], None]) -> str:
    """Make the run on this node, unless an earlier try came to its end; return the name of its folder in `out`.

    Raises:
        FtbenchError: this node is not as the one that ordered, or cannot write `out`.
    """
    out = _open(ticket)
    earlier = _published(ticket, out)
    if earlier:
        return earlier.name
    registry = load_plugins()
    _check_node(ticket, registry)
    if ticket.folder.is_dir():
        os.chdir(ticket.folder)  # a recipe's paths may be relative
    remove_unfinished(outbox(out), [ticket.ident])
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    run = launch(
        ticket.recipe,
        registry,
        outbox(out),
        read_run(out / ticket.baseline.name if ticket.url else ticket.baseline) if ticket.baseline else None,
        on_event,
        ticket.tuning,
        save_every=ticket.save_every,
        fresh=ticket.fresh,
        report_to=ticket.report_to,
        place=Place({"CUDA_VISIBLE_DEVICES": cards, **dict.fromkeys(THREADS, str(ticket.threads))}, ident=ticket.ident),
    )
    return _deliver(run).name


def _open(ticket: Ticket) -> Path:
    """Return the folder of runs on this node; of a URL what this run may need."""
    if ticket.url is None:
        return ticket.out
    mirror, name = Mirror.of(ticket.url), run_name(ticket.recipe)
    mirror.pull(lambda other: other.startswith(name) or (ticket.baseline is not None and other == ticket.baseline.name))
    return mirror.folder


def _published(ticket: Ticket, out: Path) -> Path | None:
    """Return the run that an earlier try of this launch has left; one that it could not send is sent now."""
    for place in dict.fromkeys([out, outbox(out)]):
        folders = place.glob(f"{run_name(ticket.recipe)}*")
        for folder in folders:
            if of_launch(folder) == ticket.ident:
                return _deliver(read_run(folder))
    return None


def _deliver(run: Run) -> Path:
    try:
        return deliver(run).folder
    except FtbenchError as error:
        raise FtbenchError(f"node {platform.node()}: {error}; the run is kept there in {run.folder}") from error


def _check_node(ticket: Ticket, registry: Registry) -> None:
    """See that a run here is what it would be there."""
    node = f"node {platform.node()}"
    if ticket.url is None and not (ticket.out / ticket.probe).exists():
        raise FtbenchError(f"{node} does not share {ticket.out}: choose an --out that all nodes see under this path")
    if source_digest() != ticket.code:
        raise FtbenchError(f"{node} has another ftbench than this machine: install the same on all nodes")
    there = {plugin.name: plugin.version for plugin in registry.plugins}
    if there.get(ticket.plugin) != ticket.plugin_version:
        raise FtbenchError(
            f"{node} has no plugin {ticket.plugin} {ticket.plugin_version} (there: {there.get(ticket.plugin)}): "
            "install the same on all nodes"
        )
    missing = [path for path in ticket.files if not path.exists()]
    if missing:
        raise FtbenchError(f"{node} does not have {missing[0]}: put it where all nodes see it under this path")


def _local_files(recipe: Recipe) -> tuple[Path, ...]:
    """Return the files and folders that a recipe names by their paths."""
    names = (recipe.model, recipe.data, recipe.topic, recipe.start or "", recipe.algorithm)
    given = [part for name in names for part in (name, name.partition(":")[2]) if "/" in part or "." in part]
    return tuple(Path(name).resolve() for name in given if Path(name).exists())


class Probe:
    """A file in `out` while a cluster is used: a node that does not see it does not share the folder."""

    def __init__(self, ident: str) -> None:
        self.name = f"{_PROBE}{ident}"
        self._written: set[Path] = set()

    def write(self, out: Path) -> None:
        """Write it, unless it is there.

        Raises:
            FtbenchError: `out` cannot be written.
        """
        if out in self._written:
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / self.name).touch()
        except OSError as error:
            raise disk_error(out, error) from error
        self._written.add(out)

    def remove(self) -> None:
        """Remove it wherever it was written."""
        for out in self._written:
            with suppress(OSError):
                (out / self.name).unlink(missing_ok=True)


def remove_unfinished(out: Path, idents: Iterable[str], patience: float = 0.0) -> None:
    """Remove what tries of these launches, which were ended, left half-done.

    One that is taken for lost may go on all the same. Its folder is moved away first, as a whole: from then on it has
    nothing that it could publish, and what was published before is no more touched.

    Args:
        out: the folder of runs.
        idents: of the launches.
        patience: seconds to go on for, while processes that are ending may still write.
    """
    end, launches = time.monotonic() + patience, set(idents)
    while True:
        left = [folder for folder in out.glob(_STAGED) if of_launch(folder) in launches]
        for folder in left:
            with suppress(OSError, FtbenchError), staging(out) as place:
                folder.rename(place / "left")
        if not left or time.monotonic() > end:
            return
        time.sleep(0.2)
