"""Workers whose work is done in this process, which has imported what it needs, and where faults happen on time."""

import os
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import IO, Any

from ftbench.checking.surroundings import kept
from ftbench.execution.events import Event, EventWriter, PhaseBegan, Progress, write_event
from ftbench.execution.local import Place, launch
from ftbench.execution.worker import work
from ftbench.execution.workers import Workers
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.store import Run, read_run
from ftbench.training.sharding import Ranks
from strangers import ftbench_here

Fault = Callable[[str, Path], None]
"""Is told each phase as it begins, and each step of training ("step 1", …), with the run's folder."""


class Ended:
    """What stands for a process that has ended."""

    def __init__(self, events: Sequence[Event], code: int) -> None:
        self.stdout: Iterator[str] = iter([write_event(event) for event in events])
        self._code = code

    def wait(self) -> int:
        return self._code

    poll = wait


class _Telling(EventWriter):
    def __init__(self, fault: Fault, folder: Path) -> None:
        self.events: list[Event] = []
        self._fault, self._folder, self._steps = fault, folder, 0

    def send(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, PhaseBegan):
            self._fault(event.phase, self._folder)
        elif isinstance(event, Progress) and event.row is not None:
            self._steps += 1
            self._fault(f"step {self._steps}", self._folder)


class WorkingHere(Workers):
    """Does what a worker is asked for before it is said to be started."""

    def __init__(self, fault: Fault = lambda *_: None) -> None:
        super().__init__()
        self._fault = fault

    def start(self, command: Sequence[str], log: IO[bytes], variables: Mapping[str, str]) -> Any:
        if "--save-every" not in command:
            raise NotImplementedError(f"{command} is no worker's call")
        folder, asked = Path(command[3]), dict(zip(command[4::2], command[5::2], strict=True))
        baseline = Path(asked["--baseline"]) if "--baseline" in asked else None
        events, code = _Telling(self._fault, folder), 0
        with os.fdopen(os.dup(log.fileno()), "w", 1) as said, redirect_stderr(_Patient(said)), kept():
            try:
                work(folder, read_run(baseline) if baseline else None, float(asked["--save-every"]), events, Ranks())
            except SystemExit as ended:
                code = int(str(ended.code))
            except Exception:
                traceback.print_exc()
                code = 1
        return Ended(events.events, code)


class _Patient:
    """A log that may be full, as a process's own standard error is when it ends."""

    def __init__(self, log: IO[str]) -> None:
        self._log = log

    def write(self, text: str) -> int:
        try:
            os.write(self._log.fileno(), text.encode())
        except OSError:
            return 0
        return len(text)

    def flush(self) -> None:
        pass


def quick_recipe(model: Path, data: Path) -> Recipe:
    """A run of a second, that writes a whole model."""
    return Recipe(
        algorithm="full", model=str(model), data=str(data), topic="boats", tokens=1500, checkpoints=0,
        max_new_tokens=4, attack_prompts=4, device="cpu", precision="float32",
    )  # fmt: skip


def run(recipe: Recipe, out: Path, fault: Fault = lambda *_: None, save_every: float = 0.0) -> Run:
    """Launch a run whose worker works here."""
    place = Place(workers=WorkingHere(fault))
    return launch(recipe, load_plugins(), out, None, lambda _: None, save_every=save_every, place=place)


def call(recipe: Recipe, algorithms: Sequence[str], folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Call `ftbench run` for algorithms on a recipe's task, into `folder`/runs."""
    asked = ["--model", recipe.model, "--data", recipe.data, "--topic", recipe.topic, "--tokens", str(recipe.tokens)]
    asked += ["--device", "cpu", "--set", "max_new_tokens=4", "--set", "attack_prompts=0", "--set", "checkpoints=0"]
    names = [part for name in algorithms for part in ("--algo", name)]
    return ftbench_here("run", *asked, *names, *more, "--out", folder / "runs", cwd=folder, apart=True)
