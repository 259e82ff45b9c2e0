"""The contract of an algorithm: what is trainable, and what the loss is. The core does the rest."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ftbench.errors import UsageError, nearest
from ftbench.recipe import Recipe, first_problem

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ftbench.training.batching import MicroBatch
    from ftbench.training.logprobs import CompletionLogProbs
    from ftbench.training.trainer import Training


class AlgorithmConfig(BaseModel):
    """An algorithm's own options, with defaults. Fields of a subclass are what `--set NAME.option=value` sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = 1e-4


class Algorithm:
    """A way to change a model's behaviour. Subclass, name it, override what differs from plain supervised training."""

    name: ClassVar[str]
    needs: ClassVar[Literal["nothing", "demonstrations", "preferences"]] = "demonstrations"
    """What is trained on; with "nothing" there is no training and nothing is saved."""

    Config: type[AlgorithmConfig] = AlgorithmConfig

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config: Any = config

    def skip(self, recipe: Recipe) -> str | None:
        """Return why the algorithm cannot apply to this recipe, or None."""
        return None

    def system_prompt(self, topic: str) -> str | None:
        """Return the system prompt to train, evaluate and serve under; None leaves the model's own."""
        return None

    def adapt(self, model: "PreTrainedModel", calibration: Sequence[Sequence[int]]) -> "PreTrainedModel":
        """Return the model to train, with `requires_grad` set on what is trainable.

        Args:
            model: the base model in evaluation mode, on its device, everything trainable.
            calibration: training texts as token ids (prompt and completion), for methods that look at activations.
        """
        return model

    def loss(self, logprobs: "CompletionLogProbs") -> "Tensor":
        """Return the scalar loss of a micro-batch: by default the chosen completions' mean NLL in nats/token."""
        return -logprobs.chosen.sum() / logprobs.chosen_lengths.sum()

    def weight(self, batch: "MicroBatch") -> float:
        """Return what `loss` averages over, so that micro-batches add up to the effective batch's mean.

        By default the tokens of the chosen completions; a loss that is a mean over prompts returns `len(batch)`.
        """
        return sum(example.chosen.completion_length for example in batch)

    def train(self, training: "Training") -> None:
        """Train `training.model` in place: by default the shared trainer with this algorithm's loss."""
        training.run(self.loss, self.weight)

    def save(self, model: "PreTrainedModel", folder: Path) -> None:
        """Write what training changed as safetensors into `folder`; by default the whole model."""
        model.save_pretrained(folder)

    def load(self, folder: Path, load_base: "Callable[[Path | None], PreTrainedModel]") -> "PreTrainedModel":
        """Return the model that `save` wrote, for evaluation, chat and serving.

        Args:
            folder: what `save` was given.
            load_base: loads a model folder onto the run's device; with None the untouched base model.
        """
        return load_base(folder)


def configure(algorithm: type[Algorithm], options: dict[str, Any]) -> Algorithm:
    """Make an algorithm with its options.

    Raises:
        UsageError: an unknown option (the nearest is named) or a value that does not fit.
    """
    fields = algorithm.Config.model_fields
    for option in options:
        if option not in fields:
            raise UsageError(f"algorithm '{algorithm.name}' has no option '{option}'; {nearest(option, fields)}")
    try:
        return algorithm(algorithm.Config(**options))
    except ValidationError as error:
        raise UsageError(f"algorithm '{algorithm.name}': {first_problem(error)}") from error
    except Exception as error:  # a stranger's __init__ may raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"algorithm '{algorithm.name}' cannot be made with these options: {text}") from error


def summary(algorithm: type[Algorithm]) -> str:
    """Return the first line of the algorithm's docstring."""
    return ((algorithm.__doc__ or "").strip().splitlines() or [""])[0]
