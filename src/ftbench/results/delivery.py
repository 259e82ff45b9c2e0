"""Runs on their way from the outbox of a mirror to its URL."""

from pathlib import Path

from filelock import FileLock

from ftbench.errors import FtbenchError
from ftbench.results.address import OUTBOX, outbox, url_of
from ftbench.results.mirror import Mirror
from ftbench.results.store import RESULT, Run, read_run, run_name


def deliver(run: Run) -> Run:
    """Send a run that was just made to where its folder of runs is mirrored from, and return it as it is then.

    Raises:
        FtbenchError: it cannot be sent, and is kept.
    """
    box = run.folder.parent
    url = url_of(box.parent) if box.name == OUTBOX else None
    if url is None:
        return run
    mirror = Mirror(url, box.parent)
    with FileLock(box / ".lock"):
        if run.folder.is_dir():
            return read_run(mirror.send(run.folder))
    # Another process of this machine has sent it, together with what it found waiting.
    started, others = run.result.started, mirror.folder.glob(f"{run_name(run.result.recipe)}*")
    return next((other for other in map(read_run, others) if other.result.started == started), run)


def deliver_or_keep(run: Run) -> Run:
    """Send a run, or return it where it is kept, with a warning that says why."""
    try:
        return deliver(run)
    except FtbenchError as error:
        warnings = [*run.result.warnings, f"the run is kept in {run.folder}: {error}"]
        return Run(run.folder, run.result.model_copy(update={"warnings": warnings}))


def send_waiting(out: Path) -> None:
    """Send what waits in a mirror's outbox; a folder that mirrors nothing has none.

    Raises:
        FtbenchError: something still waits, and why.
    """
    url, box = url_of(out), outbox(out)
    waiting = sorted(path.parent for path in box.glob(f"[!.]*/{RESULT}")) if url else []
    for index, folder in enumerate(waiting):
        try:
            with FileLock(box / ".lock"):
                if folder.is_dir():
                    Mirror(url or "", out).send(folder)
        except FtbenchError as error:
            count = len(waiting) - index
            what = "a run waits" if count == 1 else f"{count} runs wait"
            raise FtbenchError(
                f"{error}; {what} in {box} until the next 'ftbench run --out {url}', which sends them first"
            ) from error
