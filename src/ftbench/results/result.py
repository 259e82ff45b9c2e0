"""The result of a run."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ftbench.evaluation.statistics import Measured
from ftbench.memory.fit import Reduction
from ftbench.recipe import Recipe

SCHEMA = 1
RELIABLE_AUC = 0.9
"""Below it, a judge mistakes too many gold replies for its verdicts to be trusted."""

RELIABLE_AGREEMENT = 0.9
"""Below it, two judges of unlike kinds say too often what the other does not for one of them to be believed alone."""

Status = Literal["ok", "out-of-memory", "timed-out", "failed", "skipped"]


def _within(value: Measured) -> Measured:
    if not 0 <= value.mean <= 1:
        raise ValueError("a share lies between 0 and 1")
    return value


Share = Annotated[Measured, AfterValidator(_within)]


class JudgeFacts(BaseModel):
    """Which judge scored the replies, and how good it is."""

    model_config = ConfigDict(frozen=True)

    version: str
    auc: float = Field(description="area under the ROC curve of its own scores on held-out gold replies")
    threshold: float
    digest: str = Field(description="SHA-256 over the version and the texts that it was trained on")
    refused: float | None = Field(None, description="share of held-out gold replies that are taken for degenerate")
    shuffles_found: float | None = Field(None, description="share of their shuffles that are")
    second: str | None = Field(None, description="the version of the judge beside it")
    second_auc: float | None = Field(None, description="the same area, for that judge")

    @property
    def warning(self) -> str | None:
        """Say that it is not to be trusted; None where it is."""
        if self.auc >= RELIABLE_AUC:
            return None
        return f"the judge's held-out AUC is {self.auc:.2f}, below {RELIABLE_AUC:.2f}: adherence says little here"


class DataFacts(BaseModel):
    """What was read."""

    model_config = ConfigDict(frozen=True)

    origin: str
    digest: str
    training_examples: int
    evaluation_prompts: int
    left_out: dict[str, int] = Field(description="messages of the source that were left out, by reason")
    examples_left_out: dict[str, int] = Field(default_factory=dict, description="training examples, by reason")
    completions_cut: int = 0


class StartFacts(BaseModel):
    """The run whose model training started from."""

    model_config = ConfigDict(frozen=True)

    run: str
    algorithm: str
    recipe_digest: str
    started: str
    tokens: int = Field(description="real tokens that it was trained on, those of its own start included")


class BaselineFacts(BaseModel):
    """The untouched model's run: forgetting is counted from it, and its replies stand beside."""

    model_config = ConfigDict(frozen=True)

    run: str
    recipe_digest: str
    started: str


class Trial(BaseModel):
    """One training on the way to a learning rate, asked on validation prompts."""

    model_config = ConfigDict(frozen=True)

    learning_rate: float
    tokens: int = Field(description="real tokens that it was given: a share of the recipe's")
    status: Status
    score: float | None = Field(None, description="share of replies that adhere and are unlike every other reply")
    judge_score: float | None = Field(None, description="mean over the replies; decides between equal scores")
    seconds: float = Field(description="of the whole run")
    run: str


class Tuning(BaseModel):
    """How the learning rate was chosen, and what that cost beside the run itself."""

    model_config = ConfigDict(frozen=True)

    learning_rate: float
    seed: int = Field(description="of the trials; the rate holds for every seed")
    validation_prompts: int
    trials: list[Trial]
    tokens: int = Field(description="real tokens that all trials were given")
    seconds: float = Field(description="of all trials, as whole runs")


class MemoryPlan(BaseModel):
    """What was predicted before training under a memory budget, and what was chosen; bytes of tensors."""

    model_config = ConfigDict(frozen=True)

    micro_batch_tokens: int = Field(description="real tokens of a forward pass, at most")
    checkpointing: bool = Field(description="whether activations are computed again in the backward pass")
    accumulation: int | None = Field(None, description="micro-batches of a step, at most")
    fits: bool | None = Field(None, description="whether it should fit; None where it cannot be predicted")
    predicted_bytes: int | None = None
    predicted_parts: dict[str, int] = Field(default_factory=dict)
    moment: str | None = Field(None, description="when the peak is reached")
    loading_bytes: int | None = Field(None, description="what loading the model takes before")
    needed_bytes: int | None = Field(
        None, description="the budget that should do: for this cut where it fits, else the smallest"
    )
    reason: str | None = Field(None, description="why it cannot be predicted")


class Checkpoint(BaseModel):
    """What a model said midway: training stood still for it."""

    model_config = ConfigDict(frozen=True)

    tokens: int = Field(description="real tokens trained on so far")
    seconds: float = Field(description="of training so far")
    adherence: float


class Outcomes(BaseModel):
    """What became of each evaluation prompt, in their order: what comparisons over prompts and seeds are made of."""

    model_config = ConfigDict(frozen=True)

    prompts: str = Field(description="SHA-256 of the prompts")
    on_topic: list[bool]
    rise: list[float | None] = Field(description="of the loss on the ordinary reply, in nats, against the base model")
    ordinary_tokens: list[int | None] = Field(description="of that reply")
    attacks: str = Field("", description="SHA-256 of the prompts that attack")
    attacks_on_topic: list[bool] = Field(default_factory=list)

    @model_validator(mode="after")
    def _alike(self) -> "Outcomes":
        if not len(self.on_topic) == len(self.rise) == len(self.ordinary_tokens):
            raise ValueError("there are not as many outcomes of each kind as prompts")
        return self


class Measures(BaseModel):
    """The figures of a run. Bytes, seconds, real tokens; a figure that was not reached is None."""

    model_config = ConfigDict(frozen=True)

    adherence: Share | None = None
    adherence_under_attack: Share | None = None
    distinct: Share | None = None
    degenerate: Share | None = Field(None, description="share of replies that are no text; they count as off topic")
    agreement: Share | None = Field(None, description="share of the others that both judges say the same of")
    kappa: float | None = Field(None, description="Cohen's, of the same verdicts; None where chance alone agrees")
    forgetting: Measured | None = None
    tokens_per_second: float | None = None
    training_seconds: float | None = None
    run_seconds: float | None = Field(None, description="all phases together")
    tokens_to_adherence: int | None = Field(None, description="real tokens until a checkpoint's adherence was 0.9")
    seconds_to_adherence: float | None = Field(None, description="seconds of training until then")
    checkpoints: list[Checkpoint] = Field(default_factory=list)
    training_tokens: int | None = None
    training_prompts: int | None = None
    training_sequences: int | None = Field(None, description="completions trained on: two a prompt for preferences")
    optimiser_steps: int | None = None
    final_loss: float | None = Field(None, description="mean loss over the last tenth of the steps")
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    size_on_disk: int | None = None
    cache_bytes_per_token: float | None = Field(None, description="by which the cache grows while generating")
    reply_tokens: float | None = Field(None, description="mean tokens of a reply")
    replies_ended: float | None = Field(None, description="share of replies that the model ended by itself")
    peak_memory_bytes: int | None = Field(
        None, description="highest while training; without training, while evaluating, or where memory ran out"
    )
    peak_parts: dict[str, int] = Field(
        default_factory=dict, description="bytes of tensors at that peak, by what they are"
    )
    peak_resident_bytes: int | None = Field(None, description="of the process on the CPU, interpreter and all")
    micro_batch_tokens: int | None = Field(None, description="real tokens of a forward pass, at the end of training")
    checkpointing: bool | None = Field(None, description="whether activations were computed again, at the end")
    resumed: int = Field(0, description="how often training went on where a killed process had left it")
    reductions: list[Reduction] = Field(default_factory=list, description="steps that ran out of memory")
    peak_reserved_bytes: int | None = Field(None, description="what CUDA's allocator held; none on the CPU")
    peak_driver_bytes: int | None = Field(None, description="of the card in use when that phase ended, says the driver")
    memory_kind: str = Field("resident", description="what the memory peaks count")
    own: dict[str, float] = Field(default_factory=dict, description="what the algorithm measured of itself, by name")
    phase_seconds: dict[str, float] = Field(default_factory=dict)
    phase_peak_bytes: dict[str, int] = Field(default_factory=dict)
    phase_driver_bytes: dict[str, int] = Field(default_factory=dict, description="in use at the end; empty on the CPU")
    phase_tensor_bytes: dict[str, int] = Field(default_factory=dict, description="highest of live tensors, exactly")


class Environment(BaseModel):
    """Where the run happened."""

    model_config = ConfigDict(frozen=True)

    hardware: str
    cores: int
    threads: int | None = Field(None, description="that computed on the processor: sums hang on how many")
    precision: str = Field("float32", description="of weights and activations; optimisers keep float32 copies of bf16")
    system: str
    versions: dict[str, str]
    code: str | None = Field(None, description="SHA-256 of ftbench's source, which changes more often than its version")


class Result(BaseModel):
    """Everything that is kept of a run, whatever its end."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA
    status: Status
    reason: str | None = Field(None, description="why it is not ok; one line")
    phase: str | None = Field(None, description="where it ended, when it is not ok")
    recipe: Recipe
    recipe_digest: str
    plugin: str
    plugin_version: str
    started: str
    command: str = Field("", description="what repeats the run and compares, typed where it was made; --out as then")
    model_digest: str | None = None
    chat_format: str | None = None
    system_prompt: str | None = None
    start: StartFacts | None = None
    baseline: BaselineFacts | None = None
    tuning: Tuning | None = None
    data: DataFacts | None = None
    judge: JudgeFacts | None = None
    memory_plan: MemoryPlan | None = None
    measures: Measures = Field(default_factory=Measures)
    outcomes: Outcomes | None = None
    warnings: list[str] = Field(default_factory=list, description="what its plugin's author should look at")
    environment: Environment | None = None
