"""What all phases of a run share: what it is, who takes part, and what is measured and told of it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftbench.algorithm import Algorithm
from ftbench.execution.events import EventWriter, PhaseBegan
from ftbench.execution.facts import Facts
from ftbench.files import write_jsonl
from ftbench.memory.budget import enforce_budget
from ftbench.memory.fit import free_memory
from ftbench.memory.meter import Meter
from ftbench.recipe import Recipe
from ftbench.training.sharding import Ranks, make_mesh, shard

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Course:
    """One run on its way: its phases fill `facts`, and write all but the result into `folder`.

    `ranks` all go through the same phases, each with its share of the model; the first alone reports and writes.
    """

    recipe: Recipe
    algorithm: Algorithm
    folder: Path
    events: EventWriter
    facts: Facts
    ranks: Ranks = field(default_factory=Ranks)

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[None]:
        """Go through a phase, timed and measured; `total` is how much there is to do, for whoever shows progress."""
        self.facts.phase = name
        self.events.send(PhaseBegan(name, total))
        with self.meter.phase(name):
            yield

    @property
    def meter(self) -> Meter:
        """What measures the run, once its device is known."""
        assert self.facts.meter is not None
        return self.facts.meter

    def divide(self, model: "PreTrainedModel", device: "torch.device", since: int) -> None:
        """Leave each rank its share of the model, if there are several; the budget holds from here on.

        Args:
            model: whole, in main memory.
            device: of this rank.
            since: bytes of the process before the model was loaded.
        """
        if self.ranks.count > 1:
            shard(model, make_mesh(self.ranks.count, device))
            free_memory()
            enforce_budget(self.recipe.memory_budget, device, since)

    def write(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows to a file of the run's folder."""
        if self.ranks.leads:
            write_jsonl(self.folder / name, rows)
