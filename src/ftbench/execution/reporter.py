"""The tools' process: `python -m ftbench.execution.reporter`, which is told of one run on its standard input.

The first line says what the run is; each further one holds figures to log. An empty line on its standard output says
that the tools are ready; every other line is what one of them failed with, after which that one is told nothing more.
"""

import fcntl
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING
from pathlib import Path
from typing import Any

PROJECT = "ftbench"
_PROJECTS = ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "COMET_PROJECT_NAME", "CLEARML_PROJECT", "SWANLAB_PROJECT")
_MODELS = ("WANDB_LOG_MODEL", "WANDB_WATCH", "HF_MLFLOW_LOG_ARTIFACTS", "COMET_LOG_ASSETS", "CLEARML_LOG_MODEL",
           "SWANLAB_LOG_MODEL", "HF_DVCLIVE_LOG_MODEL")  # fmt: skip
"""They ask for the model, which is not in this process."""


def main() -> None:
    """Drive transformers' callbacks with what is told."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the tools print goes to the log
    about = json.loads(sys.stdin.readline())
    name = _prepare(Path(about["folder"]), about["name"], about["tools"])
    callbacks = Callbacks(about["tools"], answers.write)
    with _alone():
        callbacks.begin(name, about["folder"], about["config"])
    answers.write("\n")
    for line in sys.stdin:
        told = json.loads(line)
        callbacks.log(told["logs"], told.get("step"))
    callbacks.end()


@contextmanager
def _alone() -> Iterator[None]:
    """Let one process at a time begin in this working folder.

    MLflow then makes its database there, and fails where another is at it. The folder itself is locked, so that nothing
    is left behind.
    """
    place = None
    with suppress(OSError):  # a shared disk may know no such lock
        place = os.open(".", os.O_RDONLY)
        fcntl.flock(place, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if place is not None:
            with suppress(OSError):
                fcntl.flock(place, fcntl.LOCK_UN)  # closing does not do it where a tool's own process holds it, too
            os.close(place)


def _prepare(folder: Path, name: str, tools: list[str]) -> str:
    """Set what the tools take from the environment; return the run's name.

    It has a number where TensorBoard has that one already, and what no other has for Trackio, which would go on with
    the earlier run.
    """
    for variable in _PROJECTS:
        os.environ.setdefault(variable, PROJECT)
    for variable in _MODELS:
        os.environ.pop(variable, None)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the card is the run's
    if "trackio" in tools:
        name = f"{name}-{uuid.uuid4().hex[:8]}"
    if "tensorboard" not in tools:
        return name
    place = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or folder / "tensorboard").expanduser()
    number, target = 1, place / name
    while True:
        try:
            target.mkdir(parents=True)
        except FileExistsError:  # two runs in one folder would be drawn as one line
            number += 1
            target = place / f"{name}-{number}"
            continue
        except OSError:
            pass  # TensorBoard's writer meets it, too, and says so
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(target)
        return name


class Arguments:
    """What callbacks read of a trainer's arguments: a run's own, and of all others what transformers has by default."""

    def __init__(self, name: str, folder: str, config: dict[str, Any]) -> None:
        self.run_name = name
        self.output_dir = folder
        self.project = PROJECT
        self._config = config

    def __getattr__(self, name: str) -> Any:
        from transformers import TrainingArguments

        field = TrainingArguments.__dataclass_fields__.get(name)
        if field is None or field.default is MISSING:
            raise AttributeError(name)
        return field.default

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe."""
        return dict(self._config)

    to_sanitized_dict = to_dict

    def to_json_string(self) -> str:
        """Return the recipe as JSON."""
        return json.dumps(self._config, indent=2)


class Callbacks:
    """transformers' callbacks for some tools; one that fails is told nothing more, and `fail` is told why, once."""

    def __init__(self, tools: list[str], fail: Callable[[str], object]) -> None:
        from transformers import TrainerControl, TrainerState
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks

        self._fail = fail
        self._state, self._control = TrainerState(), TrainerControl()
        self._arguments: Arguments | None = None
        self._callbacks: dict[str, Any] = {}
        for tool in tools:
            self._try(tool, lambda: self._callbacks.update({tool: get_reporting_integration_callbacks(tool)[0]()}))  # noqa: B023

    def begin(self, name: str, folder: str, config: dict[str, Any]) -> None:
        """Begin a run."""
        self._arguments = Arguments(name, folder, config)
        self._call("on_train_begin")

    def log(self, figures: dict[str, float], step: int | None) -> None:
        """Log figures of a step, or of the last one."""
        if step is not None:
            self._state.global_step = step
        self._call("on_log", logs=figures)

    def end(self) -> None:
        """End the run."""
        self._call("on_train_end")

    def _call(self, method: str, **more: Any) -> None:
        for tool, callback in list(self._callbacks.items()):
            copies = {key: dict(value) for key, value in more.items()}
            self._try(
                tool,
                lambda: getattr(callback, method)(  # noqa: B023
                    self._arguments,
                    self._state,
                    self._control,
                    model=None,
                    processing_class=None,
                    **copies,  # noqa: B023
                ),
            )

    def _try(self, tool: str, call: Callable[[], object]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            self._callbacks.pop(tool, None)
            text = " ".join(str(error).split())[:300]
            when = f"step {self._state.global_step}" if self._state.global_step else "the start"
            self._fail(f"{tool}: heard nothing after {when}: {type(error).__name__}: {text}\n")


if __name__ == "__main__":
    main()
