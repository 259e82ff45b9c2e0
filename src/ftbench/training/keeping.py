"""A training's state on disk: from it a training whose process was killed goes on, to the same end."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from ftbench.training.clock import Clock
from ftbench.training.sharding import Ranks, held
from ftbench.training.statefile import Done, Found, Point, State, StateFiles, Told

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ftbench.training.optimiser import MasterAdamW
    from ftbench.training.trainer import Training

_LOG = logging.getLogger(__name__)
_MODEL, _OPTIMISER, _RANDOM = "model.", "optimiser.", "random."


@dataclass
class Keeper:
    """Keeps the state of one training from time to time, and takes it up where it was last kept.

    What a training is made of happens in the same order when it is started again: parts that are over are not done
    again, the one that was under way goes on. That holds for what the shared loop trains and the shared reference
    scores; what an algorithm does by itself before, it does again.

    Args:
        path: of the state's file; with None nothing is kept.
        of: all that the outcome hangs on; a state of something else is not taken up.
        every: seconds of training between two times.
        clock: of the training; it stands still meanwhile.
        tell: returns what is kept with the state.
        hear: is given it back.
        ranks: the processes that train the model together. Each keeps its share, and all take theirs up, or none.
    """

    path: Path | None = None
    of: str = ""
    every: float = 0.0
    clock: Clock = field(default_factory=Clock)
    tell: Callable[[], Told] = dict
    hear: Callable[[Told], None] = lambda _: None
    ranks: Ranks = field(default_factory=Ranks)
    times: int = 0
    """How often this training was taken up."""
    before: float = 0.0
    """Seconds of training in processes before this one."""

    def __post_init__(self) -> None:
        self._done: list[Done] = []
        self._changed: set[int] = set()
        self._kept = 0.0
        self._lock: FileLock | None = None
        self._found: Found | None = None
        # What another process is keeping is its own: taken up here, it would be of two trainings.
        if self.path and self.ranks.agree(self.path.exists()) and self._is_ours(self.path):
            self._found = StateFiles(self.path, self.ranks).find(self.of)

    def note_trained(self, parameters: "Iterable[Tensor]") -> None:
        """Keep these from now on, too: a stage trains them, or did in a process before this one."""
        self._changed |= {id(one) for one in parameters}

    def enter(self) -> Done | None:
        """Begin the next part; what it came to, where it was over already."""
        behind = self._found.state.done if self._found else []
        if len(self._done) >= len(behind):
            return None
        self.leave(behind[len(self._done)])
        return self._done[-1]

    def leave(self, done: Done) -> None:
        """End the part that was entered last."""
        self._done.append(done)

    def take_up(self, training: "Training", optimiser: "MasterAdamW") -> Point:
        """Return where a stage begins: at its first step, or where it was kept, with all as it was then."""
        if self._found is None:
            return Point()
        found, tensors = self._found.state, self._found.tensors
        self._found = None
        with tensors as file:
            names = set(file.keys())
            _fill(self._weights(training), names, file.get_tensor)
            optimiser.load(lambda name: file.get_tensor(_OPTIMISER + name))
            _restore_random(names, file.get_tensor)
        fit = training.fit
        fit.micro_batch_tokens, fit.checkpointing = found.micro_batch_tokens, found.checkpointing
        fit.reductions[:] = found.reductions
        training.watch.peaks.update(found.peaks)
        self.times = found.times + 1
        self.hear(found.told)
        self.clock.go_on(found.clock)
        self.before = self._kept = found.clock
        if self.ranks.leads:
            _LOG.warning("training goes on from step %d of stage '%s'", found.point.steps + 1, training.stage)
        return found.point

    def keep(self, training: "Training", optimiser: "MasterAdamW", steps: int, tokens: int, begin: float) -> None:
        """Write the state, if it is time to; where it cannot be written, training goes on without.

        Args:
            training: the stage.
            optimiser: its optimiser.
            steps: of the stage, that are done.
            tokens: real tokens of these.
            begin: what the clock said when the stage began.
        """
        if self.path is None:
            return
        now = self.clock()
        if now - self._kept < self.every:
            return
        self._kept = now
        if not self._is_ours(self.path):
            return
        state = State(
            of=self.of,
            done=self._done,
            point=Point(steps=steps, tokens=tokens, seconds=now - begin),
            clock=now,
            micro_batch_tokens=training.fit.micro_batch_tokens,
            checkpointing=training.fit.checkpointing,
            reductions=training.fit.reductions,
            peaks=training.watch.peaks,
            told=self.tell(),
            times=self.times,
        )
        with self.clock.stopped():
            tensors = {
                **self._weights(training),
                **{_OPTIMISER + name: tensor for name, tensor in optimiser.named_tensors()},
                **_random(training.model.device),
            }
            problem = StateFiles(self.path, self.ranks).write(tensors, state)
        if problem and self.ranks.leads:
            _LOG.warning("the state of training could not be kept (%s): it goes on without", problem)

    def close(self) -> None:
        """Let others keep the state of this training."""
        if self._lock is not None:
            self._lock.release(force=True)  # as often as it was asked for

    def _is_ours(self, path: Path) -> bool:
        """Whether the state is for these ranks to keep; the first of them has the lock."""
        return self.ranks.agree(self.ranks.leads and self._is_alone(path))

    def _is_alone(self, path: Path) -> bool:
        """Whether no other process keeps the same state; the first that comes to it has the right."""
        if self._lock is None:
            self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            _LOG.warning("another process keeps the state of the same training: this one goes on without")
            return False
        except OSError as error:
            _LOG.warning("the state of training could not be kept (%s): it goes on without", error)
            return False
        return True

    def _weights(self, training: "Training") -> "dict[str, Tensor]":
        """Return what this rank holds of what any stage so far has trained, by what it is called now."""
        named = training.model.named_parameters()
        return {_MODEL + name: held(one.detach()) for name, one in named if id(one) in self._changed}


def digest_of(*facts: str) -> str:
    """Return one digest of all that the outcome of a training hangs on."""
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def _fill(weights: "Mapping[str, Tensor]", names: Set[str], read: "Callable[[str], Tensor]") -> None:
    import torch

    with torch.no_grad():
        for name, weight in weights.items():
            if name in names:
                weight.copy_(read(name))


def _random(device: "torch.device") -> "dict[str, Tensor]":
    """Return the states of torch's random generators."""
    import torch

    states = {_RANDOM + "cpu": torch.get_rng_state()}
    return states | ({_RANDOM + "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _restore_random(names: Set[str], read: "Callable[[str], Tensor]") -> None:
    import torch

    torch.set_rng_state(read(_RANDOM + "cpu"))
    if _RANDOM + "cuda" in names:
        torch.cuda.set_rng_state(read(_RANDOM + "cuda"))
