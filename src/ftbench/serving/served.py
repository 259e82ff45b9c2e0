"""A model that is served, under the name that clients call it by."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftbench.models.attention import is_packed
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ftbench.results.store import Run


@dataclass(frozen=True)
class Served:
    """A run's model, its format, and what visitors are told of the run.

    `together` says whether replies are written many at a time; a model that has not our attention, or puts vectors of
    its own before each row, writes one after the other.
    """

    name: str
    run: "Run"
    model: "PreTrainedModel"
    chat: ChatFormat
    packed: bool = True

    @property
    def together(self) -> bool:
        """Whether replies are written many at a time."""
        return self.packed and is_packed(self.model)

    @property
    def context(self) -> int:
        """Tokens of prompt and reply that the model can attend to."""
        return context_length(self.model.config)

    def facts(self) -> dict[str, Any]:
        """Return the run's settings and figures, as JSON can hold them; no path is among them."""
        result = self.run.result
        measures = result.measures
        shares = ("adherence", "adherence_under_attack", "distinct", "forgetting")
        plain = ("tokens_per_second", "peak_memory_bytes", "training_seconds", "size_on_disk", "trainable_parameters")
        return {
            "algorithm": result.recipe.algorithm,
            "topic": result.recipe.topic.replace("\\", "/").rpartition("/")[2],
            "base_model": result.recipe.model.replace("\\", "/").rstrip("/").rpartition("/")[2],
            "seed": result.recipe.seed,
            "started": result.started,
            "precision": result.environment.precision if result.environment else None,
            "parameters": measures.total_parameters,
            **{key: value.model_dump() if (value := getattr(measures, key)) else None for key in shares},
            **{key: getattr(measures, key) for key in plain},
        }


def name_runs(runs: "list[Run]") -> list[str]:
    """Return a name for each run: its folder's, with a number behind where that is taken."""
    names: list[str] = []
    for run in runs:
        plain = run.folder.resolve().name
        name, number = plain, 1
        while name in names:
            number += 1
            name = f"{plain}-{number}"
        names.append(name)
    return names
