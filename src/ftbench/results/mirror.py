"""Runs at a URL, mirrored in a folder of the cache, which everything else reads like any folder of runs.

A run is fetched whole and once, for what was published never changes; its weights come when they are wanted. A run that
is made here is written into the mirror's outbox and sent from there: first a claim on its name, which nobody else can
make, then its files, its result last. What has no result is no run to anybody. What cannot be sent stays in the outbox.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ftbench.errors import FtbenchError
from ftbench.files import disk_error, write_text
from ftbench.models.resolve import cache_folder
from ftbench.results.address import OUTBOX, URL_FILE, checked_url, is_url, url_of
from ftbench.results.remote import has_folders, open_remote, server_of, telling
from ftbench.results.store import MODEL, RESULT, Run, of_launch, read_run, run_name, staging

CLAIM = ".claim"
"""In a run's folder at a URL, the first file: the digest of the result that will come, so that its sender knows it."""
_TWIN = ".twin-"
"""Before the name of a run whose launch has brought another run already: it is not read."""
_PART = ".part"
_LARGE_AT_ONCE = 4
"""Files that are sent, or weights that are fetched, at the same time: s3fs holds up to 100 MB of each in memory."""
_RUNS_AT_ONCE = 200
"""Runs that are fetched together: those before are here to stay, if somebody loses patience."""
_Listing = dict[str, dict[str, int]]
"""Bytes by file by run, but for weights."""


@dataclass(frozen=True)
class Mirror:
    """A folder of the cache that mirrors a URL."""

    url: str
    folder: Path

    @classmethod
    def of(cls, url: str) -> "Mirror":
        """Return the mirror of a URL, made if it is not there; nothing is fetched yet.

        Raises:
            UsageError: it is no URL of a kind that can be read here.
            FtbenchError: the cache cannot be written.
        """
        url = checked_url(url)
        open_remote(url)
        digest = hashlib.sha256(f"{url}\n{server_of(url)}".encode()).hexdigest()[:12]
        readable = re.sub(r"[^A-Za-z0-9]+", "-", url)[:60].strip("-")
        folder = cache_folder() / "stores" / f"{readable}-{digest}"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / OUTBOX).mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(folder, error) from error
        if url_of(folder) != url:
            write_text(folder / URL_FILE, url + "\n")
        return cls(url, folder)

    @cached_property
    def _files(self) -> Any:
        return open_remote(self.url)[0]

    @cached_property
    def _root(self) -> str:
        return open_remote(self.url)[1]

    def pull(self, wanted: Callable[[str], bool] | None = None) -> None:
        """Fetch the runs that are not here yet, and remove those that are there no more.

        Args:
            wanted: says which are looked at, by their names; by default all.

        Raises:
            FtbenchError: the URL cannot be read, or the cache cannot be written.
        """
        before = self._here(wanted)  # before the listing: what another process brings meanwhile stays
        with telling(self.url, "read"):
            there = {name: files for name, files in self._list(wanted).items() if RESULT in files}
        gone = {name for name, size in before.items() if size != there.get(name, {}).get(RESULT)}
        for name in gone:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            shutil.rmtree(self.folder / f"{_TWIN}{name}", ignore_errors=True)
        missing = there.keys() - (before.keys() - gone)
        ordered = sorted(missing, key=lambda name: (len(name), name))  # NAME before NAME-2
        for begin in range(0, len(ordered), _RUNS_AT_ONCE):
            self._fetch({name: there[name] for name in ordered[begin : begin + _RUNS_AT_ONCE]})

    def _here(self, wanted: Callable[[str], bool] | None) -> dict[str, int]:
        """Return the runs that are here and looked at, each with the bytes of its result."""
        results = [*self.folder.glob(f"[!.]*/{RESULT}"), *self.folder.glob(f"{_TWIN}*/{RESULT}")]
        named = [(path.parent.name.removeprefix(_TWIN), path) for path in results]
        return {name: path.stat().st_size for name, path in named if wanted is None or wanted(name)}

    def _list(self, wanted: Callable[[str], bool] | None = None) -> _Listing:
        """List what is there; names that could lead out of the mirror are left out.

        Where only some runs are looked at, the files of no other are listed, of which there may be a million.
        """
        self._files.invalidate_cache()
        places = [self._root] if wanted is None else [f"{self._root}/{name}" for name in self._names() if wanted(name)]
        found: _Listing = {}
        for path, about in [pair for place in places for pair in self._files.find(place, detail=True).items()]:
            name, _, file = path.removeprefix(self._root).strip("/").partition("/")
            if _is_plain(name) and (_is_plain(file) or file == CLAIM) and file != MODEL:
                found.setdefault(name, {})[file] = about["size"]
        return found

    def _names(self) -> list[str]:
        with suppress(FileNotFoundError):
            return [path.rstrip("/").rpartition("/")[2] for path in self._files.ls(self._root, detail=False)]
        return []

    def _fetch(self, runs: _Listing) -> None:
        pairs = [(f"{name}/{file}", name, file) for name in runs for file in runs[name] if file != CLAIM]
        with staging(self.folder) as place:
            with telling(self.url, "read"):
                self._get({f"{self._root}/{path}": place / name / file for path, name, file in pairs})
            for name in runs:
                twin = self._launched(place / name, name)
                _settle(place / name, self.folder / (f"{_TWIN}{name}" if twin else name))

    def _launched(self, run: Path, name: str) -> Path | None:
        """Return the run here that came of the same launch as `run`, if that says which it came of."""
        ident = of_launch(run)
        others = self.folder.glob(f"{_base(name)}*") if ident else []
        return next((other for other in others if of_launch(other) == ident), None)

    def fetch_weights(self, name: str) -> None:
        """Fetch the weights of a run, if it has some at the URL.

        Raises:
            FtbenchError: they cannot be read, or the cache cannot be written.
        """
        start = f"{self._root}/{name}/{MODEL}"
        with staging(self.folder) as place:
            with telling(f"{self.url}/{name}/{MODEL}", "read"):
                self._files.invalidate_cache()
                found = [path.removeprefix(start).strip("/") for path in self._files.find(start)]
                files = [file for file in found if all(map(_is_plain, file.split("/")))]
                if not files:
                    return
                self._get({f"{start}/{file}": place / MODEL / file for file in files}, **self._few)
            _settle(place / MODEL, self.folder / name / MODEL)

    def _get(self, paths: dict[str, Path], **how: int) -> None:
        for folder in {path.parent for path in paths.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        self._files.get(list(paths), list(map(str, paths.values())), **how)

    def send(self, folder: Path) -> Path:
        """Send a run of the outbox to the URL, and return its folder in the mirror.

        Its name is NAME, or NAME-2 where that is taken. Of one launch only the first run arrives; of another the folder
        of that first one is returned, and the run goes.

        Raises:
            FtbenchError: it cannot be sent, and stays where it is.
        """
        run = read_run(folder)
        first = self._arrived(folder, run)
        if first is None:
            with telling(self.url, "write"):
                owner = hashlib.sha256((folder / RESULT).read_bytes()).hexdigest()
                name, is_whole = self._claim(run_name(run.result.recipe), owner)
                if not is_whole:
                    self._put(folder, name, run)
                    first = self._arrived(folder, run)
                    if first is None:
                        self._put_result(folder, name)
                    else:
                        self._files.rm(f"{self._root}/{name}", recursive=True)
        if first is None:
            _settle(folder, self.folder / name)
        shutil.rmtree(folder, ignore_errors=True)
        return first or self.folder / name

    def _arrived(self, folder: Path, run: Run) -> Path | None:
        """Return the run that this launch has brought to the URL already."""
        name = run_name(run.result.recipe)
        if of_launch(folder) is None:
            return None
        self.pull(lambda other: other.startswith(name))
        return self._launched(folder, name)

    def _claim(self, name: str, owner: str) -> tuple[str, bool]:
        """Take the first free name for a result, or the one that it has taken before; whether it is whole there."""
        there = self._list(lambda other: other.startswith(name))
        for number in range(1, 10_000):
            taken = name if number == 1 else f"{name}-{number}"
            if taken in there and CLAIM not in there[taken]:
                continue  # it was copied there by hand
            folder = f"{self._root}/{taken}"
            if has_folders(self._files):
                self._files.makedirs(folder, exist_ok=True)
            try:
                self._files.pipe_file(f"{folder}/{CLAIM}", owner.encode(), mode="create")
            except OSError:
                if not self._files.exists(f"{folder}/{CLAIM}"):
                    raise
            # Read back in any case: an answer may have been lost on its way, and not everyone knows of "create".
            if self._files.cat_file(f"{folder}/{CLAIM}") == owner.encode():
                return taken, RESULT in there.get(taken, {})
        raise FtbenchError(f"{self.url} already holds 10,000 runs of {name}; choose another --out")

    def _put(self, folder: Path, name: str, run: Run) -> None:
        """Send all files but the result; the weights of a trial of tuning are of no use to anybody."""
        files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
        is_trial = run.result.recipe.split != "evaluation"
        sent = [file for file in files if file != Path(RESULT) and not (is_trial and file.parts[0] == MODEL)]
        there = [f"{self._root}/{name}/{file.as_posix()}" for file in sent]
        self._files.put([str(folder / file) for file in sent], there, **self._few)

    def _put_result(self, folder: Path, name: str) -> None:
        """Send the result, which makes it a run; but in an object store a file could be seen half-written."""
        path = f"{self._root}/{name}/{RESULT}"
        if has_folders(self._files):
            self._files.put_file(str(folder / RESULT), path + _PART)
            self._files.mv(path + _PART, path)
        else:
            self._files.put_file(str(folder / RESULT), path)

    @property
    def _few(self) -> dict[str, int]:
        return {"batch_size": _LARGE_AT_ONCE} if self._files.async_impl else {}


def _settle(folder: Path, target: Path) -> None:
    """Rename a folder to its place, unless another process has put the same there meanwhile."""
    try:
        folder.rename(target)
    except OSError as error:
        if not target.exists():
            raise disk_error(target, error) from error


def _is_plain(name: str) -> bool:
    """Whether a file's or folder's name is one that ftbench could have given: not hidden, and leading nowhere else."""
    return bool(name) and not name.startswith(".") and not re.search(r"[/\\:\0]", name)


def _base(name: str) -> str:
    """Return a run's name without the number that stands behind a name that was taken."""
    return re.sub(r"(-s\d+-[0-9a-f]{8})-\d+$", r"\1", name)


def open_store(place: str) -> Path:
    """Return a folder of runs: the one that is named, or a URL's mirror as it is at this moment.

    Raises:
        UsageError: nothing here reads such a URL.
        FtbenchError: the URL cannot be read, or the cache cannot be written.
    """
    if not is_url(place):
        return Path(place)
    protocol, _, path = checked_url(place).partition("://")
    if protocol.lower() in ("file", "local"):
        return Path(path)
    mirror = Mirror.of(place)
    mirror.pull()
    return mirror.folder


def inside(out: Path, name: str) -> Path:
    """Return a folder of runs inside another, or the mirror of what is inside its URL.

    Raises:
        FtbenchError: as `open_store` does.
    """
    url = url_of(out)
    return open_store(f"{url}/{name}") if url else out / name


def locate(place: str) -> Path:
    """Return the folder of a run that is named by its path or by its URL, of which it is fetched if it is not here.

    Raises:
        UsageError, FtbenchError: as `open_store` does.
    """
    if not is_url(place):
        return Path(place)
    url, _, name = place.rpartition("/")
    return fetched(Mirror.of(url).folder, name)


def fetched(out: Path, name: str) -> Path:
    """Return a run's folder in a mirror, fetched if it is not here.

    Raises:
        FtbenchError: the URL cannot be read, or the cache cannot be written.
    """
    url = url_of(out)
    if url and not (out / name / RESULT).is_file():
        Mirror(url, out).pull(lambda other: other == name)
    return out / name


def with_weights(folder: Path) -> Path:
    """Return a run's folder with its weights in it, which are fetched where the run is at a URL.

    Raises:
        FtbenchError: they cannot be read, or the cache cannot be written.
    """
    url = url_of(folder.parent)
    if url and folder.is_dir() and not (folder / MODEL).exists():
        Mirror(url, folder.parent).fetch_weights(folder.name)
    return folder
