"""The folder of runs: each run a folder of its own, published by one rename."""

import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from ftbench.errors import FtbenchError, UsageError, nearest
from ftbench.files import disk_error, follow_umask, sync_folder
from ftbench.recipe import Recipe, first_problem
from ftbench.results.address import name_of
from ftbench.results.owner import has_ended, name_owner
from ftbench.results.result import SCHEMA, Result

if TYPE_CHECKING:
    from ftbench.evaluation.attack import AttackReply
    from ftbench.evaluation.evaluate import EvaluatedPrompt

RESULT = "result.json"
RECIPE = "recipe.toml"
METRICS = "metrics.jsonl"
REPLIES = "replies.jsonl"
ATTACKS = "attacks.jsonl"
LOG = "log.txt"
MODEL = "model"
LAUNCH = "launch.txt"
"""Which launch a run came of, where a launch may be tried again on another machine."""
_STAGING = ".unfinished-"
_DAYS = 30
"""After which a folder that nobody wrote into is removed: its machine was started anew, or is gone."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Run:
    """A finished run on disk."""

    folder: Path
    result: Result

    def replies(self) -> "list[EvaluatedPrompt]":
        """Read every evaluation reply.

        Raises:
            FtbenchError: the file is missing or was changed.
        """
        from ftbench.evaluation.evaluate import EvaluatedPrompt

        return _lines(self.folder / REPLIES, EvaluatedPrompt.model_validate_json, "replies")

    def attacks(self) -> "list[AttackReply]":
        """Read every reply to a prompt that attacks; none where none was asked.

        Raises:
            FtbenchError: the file was changed.
        """
        from ftbench.evaluation.attack import AttackReply

        path = self.folder / ATTACKS
        return _lines(path, AttackReply.model_validate_json, "replies") if path.exists() else []

    def steps(self) -> list[dict[str, Any]]:
        """Read what was logged of every optimiser step; none where nothing was trained.

        Raises:
            FtbenchError: the file was changed.
        """
        path = self.folder / METRICS
        return _lines(path, json.loads, "steps") if path.exists() else []


def _lines(path: Path, read: Callable[[str], _T], what: str) -> list[_T]:
    try:
        # Not splitlines: JSON leaves line separators of other kinds within its texts as they are.
        return [read(line) for line in path.read_text("utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise FtbenchError(f"cannot read the {what} in {path}; run it again with --fresh") from error


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """Give a fresh folder inside `out` to write a run into; what is not published is removed, also on Ctrl-C.

    Raises:
        FtbenchError: `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        folder = Path(tempfile.mkdtemp(dir=out, prefix=f"{_STAGING}{name_owner()}-"))
    except OSError as error:
        raise disk_error(out, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path, recipe: Recipe) -> Path:
    """Rename a staged run to its place: ALGORITHM-sSEED-DIGEST, with a number behind where that is taken.

    Nothing is ever replaced, so that two processes that write into one folder cannot lose each other's runs. The number
    is higher than that of every run of the same recipe, also where one between was removed: it says which is newer. Of
    one launch only the first run is published, and its folder is returned to the others.

    Raises:
        FtbenchError: the disk is full or the folder cannot be written.
    """
    name = run_name(recipe)
    launch = of_launch(folder)
    try:
        follow_umask(folder)  # a server may be another user, as the container's is
        sync_folder(folder)
        there = {number: path for path in out.iterdir() if (number := _number(path.name, name))}
        for path in there.values():
            if launch and of_launch(path) == launch:
                return path
        for number in range(max(there, default=0) + 1, 10_000):
            target = out / (name if number == 1 else f"{name}-{number}")
            try:
                folder.rename(target)
            except OSError:  # taken meanwhile: a rename onto a folder with content fails
                if not target.exists():
                    raise
                if launch and of_launch(target) == launch:
                    return target
                continue
            return target
    except OSError as error:
        raise disk_error(out, error) from error
    raise FtbenchError(f"{out} already holds 10,000 runs of {name}; choose another --out")


def of_launch(folder: Path) -> str | None:
    """Return which launch a run came of; None where nothing is written of that."""
    try:
        return (folder / LAUNCH).read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def run_name(recipe: Recipe, digest: str | None = None) -> str:
    """What the folder of a recipe's run is called; a variant's colon is none that every file system takes."""
    return f"{recipe.algorithm.replace(':', '-')}-s{recipe.seed}-{(digest or recipe.digest())[:8]}"


def _number(folder: str, name: str) -> int:
    """Return which of a recipe's runs a folder is, by its name: 1 is the first; 0 where it is none of them."""
    more = folder.removeprefix(f"{name}-")
    return 1 if folder == name else int(more) if more != folder and more.isdecimal() else 0


def read_run(folder: Path) -> Run:
    """Read one run.

    Raises:
        FtbenchError: the result is missing, cut short, of a newer schema, or not a result.
    """
    path = folder / RESULT
    try:
        text = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    return Run(folder, _validated(folder, text))


def _unreadable(path: Path, error: OSError) -> FtbenchError:
    return FtbenchError(f"cannot read {path}: {error.strerror or error}")


def _validated(folder: Path, text: bytes) -> Result:
    try:
        result = Result.model_validate_json(text)
    except ValidationError as error:
        path = folder / RESULT
        _check_version(path, text)
        raise FtbenchError(f"{path} is not a result: {first_problem(error)}") from error
    if result.schema_version > SCHEMA:
        _check_version(folder / RESULT, text)
    return result


def _check_version(path: Path, text: bytes) -> None:
    """Say it if what cannot be read is cut short, or of a newer ftbench."""
    try:
        version = json.loads(text)["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise FtbenchError(f"{path} is not a whole result: {error}; remove the folder and run it again") from error
    if isinstance(version, int) and version > SCHEMA:
        raise FtbenchError(f"{path} was written by a newer ftbench (schema {version}); update ftbench to read it")


def read_runs(out: Path) -> tuple[list[Run], list[str]]:
    """Read every run below `out`, oldest first, and a line for each folder that could not be read.

    Raises:
        UsageError: there is no such folder.
    """
    if not out.is_dir():
        raise UsageError(f"no runs in {out}: there is no such folder; 'ftbench run --algo lora' makes the first")
    runs, warnings = [], []
    with without_collecting():
        for name in sorted(os.listdir(out)):  # noqa: PTH208
            if name.startswith("."):
                continue
            folder = out / name
            path = f"{folder}/{RESULT}"  # a path object, and what it opens, take longer than reading
            try:
                with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                    text = file.readall()
                runs.append(Run(folder, _validated(folder, text)))
            except OSError as error:
                if os.path.exists(path):  # noqa: PTH110
                    warnings.append(str(_unreadable(folder / RESULT, error)))
            except FtbenchError as error:
                warnings.append(str(error))
    return oldest_first(runs), warnings


def oldest_first(runs: Iterable[Run]) -> list[Run]:
    """Sort runs by when they started; those of one recipe in one folder by their numbers, for clocks are set back."""
    ordered = sorted(runs, key=lambda run: (run.result.started, run.folder.name))
    names = [run_name(run.result.recipe, run.result.recipe_digest) for run in ordered]
    numbers = [_number(run.folder.name, name) for run, name in zip(ordered, names, strict=True)]
    repeated = {name for name, number in zip(names, numbers, strict=True) if number > 1}
    places: dict[tuple[Path, str], list[int]] = {}
    for place, name in enumerate(names):
        if numbers[place] and name in repeated:
            places.setdefault((ordered[place].folder.parent, name), []).append(place)
    found = list(ordered)
    for taken in places.values():
        for place, by_number in zip(taken, sorted(taken, key=numbers.__getitem__), strict=True):
            found[place] = ordered[by_number]
    return found


@contextmanager
def without_collecting() -> Iterator[None]:
    """Spare thousands of results, of which nothing is garbage, from being looked through again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # or all that was read would be walked once more as soon as it begins
        if collecting:
            gc.enable()


def find_run(name: str, out: Path, *, ok: bool = False) -> Run:
    """Find a run by its folder, or by the beginning of its name inside `out` (the newest, where several fit).

    Args:
        name: of the folder or of the algorithm.
        out: the folder of runs.
        ok: whether only runs that ended well are looked for, unless a folder is named.

    Raises:
        UsageError: there is none.
    """
    if (Path(name) / RESULT).is_file():
        return read_run(Path(name))
    if (out / name / RESULT).is_file():
        return read_run(out / name)
    runs, _ = read_runs(out)
    if ok:
        runs = [run for run in runs if run.result.status == "ok"]
    fitting = [run for run in runs if run.folder.name.startswith(name.replace(":", "-"))]
    if not fitting:
        raise UsageError(f"no run '{name}' in {name_of(out)}; {nearest(name, _names(runs))}")
    return fitting[-1]


def _names(runs: list[Run]) -> set[str]:
    """What runs may be called: by their folder, or by how its name begins."""
    return {name for run in runs for name in (run.folder.name, run.result.recipe.algorithm)}


def _sweep(out: Path) -> None:
    """Remove what killed processes of this machine left unfinished, and what of anyone's lay still for a month."""
    for folder in out.glob(f"{_STAGING}*"):
        with suppress(OSError):  # another process may be at it
            owner = folder.name.removeprefix(_STAGING).rpartition("-")[0]
            if has_ended(owner) or max(path.stat().st_mtime for path in (folder, *folder.iterdir())) < _old():
                shutil.rmtree(folder, ignore_errors=True)


def _old() -> float:
    return time.time() - _DAYS * 86400
