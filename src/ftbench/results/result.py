"""The result of a run."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ftbench.evaluation.statistics import Measured
from ftbench.memory.fit import Reduction
from ftbench.recipe import Recipe

SCHEMA = 1
RELIABLE_AUC = 0.9
"""Below it, a judge mistakes too many gold replies for its verdicts to be trusted."""

Status = Literal["ok", "out-of-memory", "timed-out", "failed", "skipped"]


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
    needed_bytes: int | None = Field(
        None, description="the budget that should do: for this cut where it fits, else the smallest"
    )
    reason: str | None = Field(None, description="why it cannot be predicted")


class Measures(BaseModel):
    """The figures of a run. Bytes, seconds, real tokens; a figure that was not reached is None."""

    model_config = ConfigDict(frozen=True)

    adherence: Measured | None = None
    distinct: Measured | None = None
    degenerate: Measured | None = Field(None, description="share of replies that are no text; they count as off topic")
    agreement: Measured | None = Field(None, description="share of the others that both judges say the same of")
    kappa: float | None = Field(None, description="Cohen's, of the same verdicts; None where chance alone agrees")
    forgetting: Measured | None = None
    tokens_per_second: float | None = None
    training_seconds: float | None = None
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
        None, description="highest while training; without training, while evaluating"
    )
    peak_parts: dict[str, int] = Field(
        default_factory=dict, description="bytes of tensors at that peak, by what they are"
    )
    peak_resident_bytes: int | None = Field(None, description="of the process on the CPU, interpreter and all")
    micro_batch_tokens: int | None = Field(None, description="real tokens of a forward pass, at the end of training")
    checkpointing: bool | None = Field(None, description="whether activations were computed again, at the end")
    reductions: list[Reduction] = Field(default_factory=list, description="steps that ran out of memory")
    peak_reserved_bytes: int | None = Field(None, description="what CUDA's allocator held; none on the CPU")
    memory_kind: str = Field("resident", description="what the memory peaks count")
    own: dict[str, float] = Field(default_factory=dict, description="what the algorithm measured of itself, by name")
    phase_seconds: dict[str, float] = Field(default_factory=dict)
    phase_peak_bytes: dict[str, int] = Field(default_factory=dict)
    phase_tensor_bytes: dict[str, int] = Field(default_factory=dict, description="highest of live tensors, exactly")


class Environment(BaseModel):
    """Where the run happened."""

    model_config = ConfigDict(frozen=True)

    hardware: str
    cores: int
    precision: str = Field("float32", description="of weights and activations; optimisers keep float32 copies of bf16")
    system: str
    versions: dict[str, str]


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
    model_digest: str | None = None
    chat_format: str | None = None
    system_prompt: str | None = None
    start: StartFacts | None = None
    data: DataFacts | None = None
    judge: JudgeFacts | None = None
    memory_plan: MemoryPlan | None = None
    measures: Measures = Field(default_factory=Measures)
    environment: Environment | None = None
