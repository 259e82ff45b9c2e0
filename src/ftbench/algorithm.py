"""The contract of an algorithm: what is trainable, and what the loss is. The core does the rest."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ftbench.errors import UsageError, nearest
from ftbench.recipe import Recipe, first_problem

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ftbench.training.logprobs import CompletionLogProbs
    from ftbench.training.trainer import Training


class AlgorithmConfig(BaseModel):
    """An algorithm's own options, with defaults. Fields of a subclass are what `--set NAME.option=value` sets.

    An unknown option is refused. All are written into the recipe of a run, and read back from there to the same: so
    they must be what TOML and JSON can hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: float = Field(1e-4, description="the highest of the schedule, in training the task")

    if not TYPE_CHECKING:  # or no misspelt field would be found by a type checker

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("_"):
                    raise
                known = nearest(name, type(self).model_fields)
                raise AttributeError(f"the configuration has no field '{name}'; {known}") from None


NO_ADAPTER = "none"


class AdapterConfig(AlgorithmConfig):
    """Options of an algorithm whose trainable part is another algorithm's, such as LoRA's adapters."""

    adapter: str = Field(NO_ADAPTER, description="the algorithm that says what is trainable; none is every weight")
    adapter_options: dict[str, Any] = Field(default_factory=dict, description="that algorithm's options")

    full_learning_rate: ClassVar[float | None] = None
    """The default learning rate without an adapter; it is usually far below an adapter's."""

    @model_validator(mode="before")
    @classmethod
    def _lower_rate(cls, values: Any) -> Any:
        if (
            isinstance(values, dict)
            and values.get("adapter") == NO_ADAPTER
            and "learning_rate" not in values
            and cls.full_learning_rate is not None
        ):
            return {**values, "learning_rate": cls.full_learning_rate}
        return values


class ThenConfig(AlgorithmConfig):
    """Options of an algorithm that first makes another model of it, on which a second one can then train the task."""

    then: str = Field(NO_ADAPTER, description="the algorithm that trains the task afterwards; none is this one itself")
    then_options: dict[str, Any] = Field(default_factory=dict, description="that algorithm's options")


def rate_of(options: dict[str, Any]) -> float | None:
    """Return the learning rate that written-out options train the task at; None where nothing is trained."""
    return _with_the_rate(options).get("learning_rate")


def with_rate(options: dict[str, Any], rate: float) -> dict[str, Any]:
    """Return the options with another learning rate for training the task."""
    changed = {**_with_the_rate(options), "learning_rate": rate}
    return {**options, "then_options": changed} if _with_the_rate(options) is not options else changed


def _with_the_rate(options: dict[str, Any]) -> dict[str, Any]:
    """Return those of the algorithm that trains the task: itself, or the one that does so afterwards."""
    then: dict[str, Any] = options.get("then_options", {})
    return then if options.get("then", NO_ADAPTER) != NO_ADAPTER else options


class Algorithm:
    """A way to change a model's behaviour. Subclass, name it, override what differs from plain supervised training.

    A run goes through its phases: `adapt`, `train`, `save`, `load`. Each must leave the rest of the process as it was:
    seeds of random generators, torch's defaults, the environment, the working folder.
    """

    name: ClassVar[str]
    needs: ClassVar[Literal["nothing", "demonstrations", "preferences"]] = "demonstrations"
    """What is trained on; with "nothing" there is no training and nothing is saved."""

    variants: ClassVar[tuple[str, ...]] = ()
    """Where not empty, the algorithm is run as NAME:VARIANT, and `--algo all` runs these."""

    own_trainer: ClassVar[bool] = False
    """Whether `train` leaves the shared trainer aside: what it takes in memory can then not be predicted."""

    Config: type[AlgorithmConfig] = AlgorithmConfig

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config: Any = config
        self.adapter: Algorithm | None = None
        """Set by the core where `Config` is an `AdapterConfig` that names one: `adapt`, `save`, `load` are its."""
        self.then: Algorithm | None = None
        """Set by the core where `Config` is a `ThenConfig` that names one: what is needed and packed is its."""
        self.instruction: str | None = None
        """Set by the core where the task says in words what it asks: see `system_prompt`."""

    @property
    def packed(self) -> bool:
        """Whether the adapted model keeps sequences of one row apart by their positions; if not, each gets a row."""
        other = self.then or self.adapter
        return other.packed if other else True

    @property
    def is_adapter(self) -> bool:
        """Whether it only says what is trainable, so that another algorithm's loss can train that."""
        own = type(self)
        plain = own.train is Algorithm.train and own.loss is Algorithm.loss
        return plain and own.adapt is not Algorithm.adapt and self.needs != "nothing"

    @classmethod
    def variant(cls, text: str) -> tuple[str, dict[str, Any]]:
        """Return the short name and the options of NAME:TEXT, for an algorithm with variants.

        Raises:
            UsageError: there is no such variant; the nearest is named.
        """
        raise UsageError(f"algorithm '{cls.name}' has no variants; say --algo {cls.name}")

    def skip(self, recipe: Recipe) -> str | None:
        """Return why the algorithm cannot apply to this recipe, or None."""
        other = self.then or self.adapter
        return other.skip(recipe) if other else None

    def system_prompt(self, topic: str) -> str | None:
        """Return the system prompt to train, evaluate and serve under; None leaves the model's own.

        Args:
            topic: what the task is about; tasks other than the topic's have put what they ask into `self.instruction`.
        """
        return None

    def adapt(self, model: "PreTrainedModel", calibration: Sequence[Sequence[int]]) -> "PreTrainedModel":
        """Return the model to train, with `requires_grad` set on what is trainable; by default the adapter's, or all.

        Training may change that and nothing else. A plan calls this, and the loss, with tensors that have no values, to
        see what they take in memory: what they allocate must not hang on values.

        Args:
            model: the base model in evaluation mode, on its device, everything trainable.
            calibration: training texts as token ids (prompt and completion), for methods that look at activations.

        Raises:
            Skip: the method does not apply to this model.
        """
        return self.adapter.adapt(model, calibration) if self.adapter else model

    def loss(self, logprobs: "CompletionLogProbs") -> "Tensor":
        """Return a micro-batch's part of the effective batch's loss, a scalar: by default the NLL of the chosen.

        It must fall while the same examples are trained on, or nothing is learnt.

        Write it with `logprobs.nll()` (mean over tokens) and `logprobs.mean(values)` (mean over prompts): these know
        the effective batch, so that the sum over its micro-batches does not hang on how it was cut.
        """
        return logprobs.nll()

    def train(self, training: "Training") -> None:
        """Train `training.model` in place: by default the shared trainer with this algorithm's loss."""
        training.run(self.loss)

    def without_effect(self, model: "PreTrainedModel") -> "Iterable[Tensor]":
        """Return the weights that change nothing in what the model says as it stands; by default the adapter's.

        Runs whose models are otherwise equal then share what is found of them: LoRA's A, which is drawn by the seed,
        counts for nothing while B is zero.

        Args:
            model: that `adapt` returned, before or after training.
        """
        other = self.then or self.adapter
        return other.without_effect(model) if other else ()

    def figures(self) -> dict[str, float]:
        """Return what else it measured, by name with the unit at its end; called when all is done."""
        return {}

    def warnings(self) -> Sequence[str]:
        """Return what somebody who reads the run's figures must know, a line each; called when all is done."""
        return ()

    def save(self, model: "PreTrainedModel", folder: Path) -> None:
        """Write what training changed as safetensors into `folder`; by default the adapter, or the whole model."""
        if self.adapter:
            self.adapter.save(model, folder)
        else:
            model.save_pretrained(folder)

    def load(self, folder: Path, load_base: "Callable[[Path | None], PreTrainedModel]") -> "PreTrainedModel":
        """Return the model that `save` wrote, for evaluation, chat and serving.

        It must say what the trained one said, also when the algorithm was made anew in another process: what training
        left in the algorithm itself is gone by then.

        Args:
            folder: what `save` was given.
            load_base: loads a model folder onto the run's device; with None the model that training started from.
        """
        return self.adapter.load(folder, load_base) if self.adapter else load_base(folder)


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
    except UsageError as error:
        raise UsageError(f"algorithm '{algorithm.name}': {error}") from error
    except Exception as error:  # a stranger's __init__ may raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(f"algorithm '{algorithm.name}' cannot be made with these options: {text}") from error


def summary(kind: type[Any]) -> str:
    """Return the first line of the docstring of an algorithm, or of what else a plugin brings."""
    return ((kind.__doc__ or "").strip().splitlines() or [""])[0]
