"""The files in which a training's state is kept: one of each process that trains, all of the same moment."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from ftbench.memory.fit import Reduction, is_out_of_memory
from ftbench.memory.parts import Parts
from ftbench.training.sharding import Ranks

if TYPE_CHECKING:
    from torch import Tensor

Told = dict[str, Any]
"""What whoever starts the training wants kept with it, as JSON has it."""


class Done(BaseModel):
    """A part of a training that is over: what a stage took, or what the reference found of the plan's examples."""

    model_config = ConfigDict(frozen=True)

    tokens: int = 0
    seconds: float = 0.0
    references: list[tuple[float, float] | None] | None = None


class Point(BaseModel):
    """How far a stage is: steps, real tokens and seconds."""

    model_config = ConfigDict(frozen=True)

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0


class State(BaseModel):
    """What is kept beside the tensors; `of` says which training it is of."""

    of: str
    done: list[Done]
    point: Point
    clock: float
    micro_batch_tokens: int
    checkpointing: bool
    reductions: list[Reduction]
    peaks: dict[str, Parts]
    told: Told
    times: int


@dataclass(frozen=True)
class Found:
    """A state, and the open file with its tensors, so that these are of the same moment."""

    state: State
    tensors: Any


@dataclass(frozen=True)
class StateFiles:
    """Where the state of one training is kept; each rank has its own share of the weights and the optimiser.

    The first rank's share is the file `path`, and bears a mark; those of the others, `path.RANK-MARK`, belong to it if
    they have the same one. A new state is written beside the old one by all; only once all have, the first rank's takes
    its place under `path`. So a whole state is there whenever the processes are killed.
    """

    path: Path
    ranks: Ranks = field(default_factory=Ranks)

    def find(self, of: str) -> Found | None:
        """Return this rank's share of what is kept; all must call it.

        None for all of them where nothing is kept of this training, or what cannot be read.
        """
        mark, found = self._read(self.path, of) if self.ranks.leads else (None, None)
        mark = self.ranks.agree(mark)
        if mark and not self.ranks.leads:
            _, found = self._read(self._share(mark), of)
        return found if all(self.ranks.gather(found is not None)) else None

    def write(self, tensors: "Mapping[str, Tensor]", state: State) -> str | None:
        """Write this rank's share, whole or not at all, as that of all others; all must call it.

        Returns:
            What was in the way on one of them, if something was: what was kept before is still there.
        """
        mark = self.ranks.agree(uuid4().hex[:12])
        share = self._share(mark)
        problem = self._first(_written(share, tensors, {"state": state.model_dump_json(), "mark": mark}))
        if problem is None:
            problem = self._first(_renamed(share, self.path) if self.ranks.leads else None)
        for other in self.path.parent.glob(f"{self.path.name}.{self.ranks.index}-*"):
            if (other == share) == (problem is not None):
                with suppress(OSError):
                    other.unlink()
        return problem

    def _share(self, mark: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{self.ranks.index}-{mark}")

    def _first(self, problem: str | None) -> str | None:
        """Return the first rank's problem that has one."""
        return next((one for one in self.ranks.gather(problem) if one), None)

    @staticmethod
    def _read(path: Path, of: str) -> tuple[str | None, Found | None]:
        """Return the mark and what is kept in a file of this training, if it is there and can be read."""
        from safetensors import SafetensorError, safe_open

        try:
            file: Any = safe_open(path, "pt")
            about = file.metadata() or {}
            state = State.model_validate_json(about.get("state", ""))
        except (OSError, SafetensorError, ValidationError):
            return None, None
        return (about.get("mark"), Found(state, file)) if state.of == of else (None, None)


def _written(path: Path, tensors: "Mapping[str, Tensor]", about: dict[str, str]) -> str | None:
    """Write a file, whole or not at all; return what was in the way."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        # A folder, for safetensors writes through a temporary file beside, whose name nobody else would know.
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}."))
        try:
            plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(plain, folder / "state", about)
            with (folder / "state").open("rb") as file:
                os.fsync(file.fileno())
            (folder / "state").replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except Exception as error:
        if not (isinstance(error, OSError | SafetensorError) or is_out_of_memory(error)):
            raise
        return str(error)
    return None


def _renamed(path: Path, to: Path) -> str | None:
    """Rename a file; return what was in the way."""
    try:
        path.replace(to)
    except OSError as error:
        return str(error)
    return None
