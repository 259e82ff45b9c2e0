"""A recipe defines a run: immutable, validated, hashable, TOML in and out."""

import hashlib
import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ftbench.errors import UsageError, nearest

DEFAULT_MODEL = "smollm2-135m-instruct"
BASELINE = "base"
"""The algorithm that leaves the model untouched: forgetting is counted from its run."""
JUDGE = "tfidf"
"""The judge that is taken where none is named."""


class Recipe(BaseModel):
    """Everything that defines a run. Token counts are real tokens: prompt and completion, never padding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("quick", description="what people call it; not part of the hash")
    model: str = Field(DEFAULT_MODEL, description="the shipped model's name, a local folder, or a hub id")
    revision: str | None = Field(None, description="the hub revision of the model (a commit, a tag or a branch)")
    data: str = Field("sample", description="sample, oasst1, or a .jsonl[.gz] file")
    lang: str = Field("en", description="language of the messages, as OASST1 codes it")
    task: str = Field("topic", description="what is taught, by name")
    topic: str = Field("trains", description="a shipped topic, or a file of words; of other tasks what they ask for")
    algorithm: str = BASELINE
    options: dict[str, Any] = Field(default_factory=dict, description="the algorithm's own options")
    memory_budget: int | None = Field(None, ge=1, le=2**60, description="bytes that training may add; none is no limit")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(1, ge=1, le=1024, description="devices that the model is spread over; each has the budget")
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="of weights and activations; auto is bf16 where the device has arithmetic for it"
    )
    start: str | None = Field(None, description="folder or URL of the run whose model training starts from")
    tokens: int = Field(60_000, ge=1, description="real tokens to train on")
    training_seconds: float | None = Field(None, gt=0, description="end training here even if tokens are left")
    effective_batch_size: int = Field(4, ge=1, description="prompts per optimiser step")
    micro_batch_tokens: int = Field(1024, ge=1, description="real tokens per forward pass")
    max_length: int = Field(512, ge=16, description="tokens of prompt and completion; longer completions are cut")
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps over which the learning rate rises")
    max_grad_norm: float = Field(1.0, gt=0)
    evaluation_prompts: int = Field(64, ge=4, description="held-out prompts; at most a quarter of all")
    split: Literal["evaluation", "validation"] = Field(
        "evaluation", description="what is asked; validation is for choosing settings, without the evaluation's prompts"
    )
    max_new_tokens: int = Field(64, ge=1, description="tokens that a reply may have")
    evaluation_batch_size: int = Field(64, ge=1)
    attack_prompts: int = Field(64, ge=0, description="prompts that try to talk the model out of its topic")
    checkpoints: int = Field(5, ge=0, description="times that training stops to ask a few evaluation prompts")
    checkpoint_prompts: int = Field(16, ge=2, description="how many of them")
    judge: str = Field(JUDGE, description="the judge of the replies, by name")
    seed: int = Field(0, ge=0)
    time_limit: float | None = Field(None, gt=0, description="seconds after which the run is ended")

    @field_validator("task", "topic", "model", "data", "algorithm", "judge")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value

    @field_validator("options")
    @classmethod
    def _plain_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {key: _plain(item) for key, item in value.items() if item is not None}

    def __hash__(self) -> int:
        return hash(tuple(value for name, value in self if name != "options"))

    def digest(self) -> str:
        """SHA-256 over everything but the name, in hexadecimal."""
        values = self.model_dump(exclude={"name"})
        if self.devices == 1:  # younger than the others: what they alone define keeps its digest
            del values["devices"]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def change(self, **changes: Any) -> "Recipe":
        """Return a copy with some values replaced, validated anew."""
        return build_recipe({**self.model_dump(), **changes}, where="recipe")

    def to_toml(self) -> str:
        """Write the recipe as TOML; `read_recipe` reads it back to an equal recipe."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(exclude_none=True))


def _plain(value: Any) -> Any:
    """Copy what both TOML and JSON can hold; a None in a table is left out, for TOML has none."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | float):
        return value
    raise ValueError("only text, numbers, true, false, lists and tables are options")


def build_recipe(values: dict[str, Any], where: str) -> Recipe:
    """Validate `values`.

    Raises:
        UsageError: one line naming `where`, the field and the nearest known field.
    """
    for key in values:
        if key not in Recipe.model_fields:
            raise UsageError(f"{where}: no such setting {key!r}; {nearest(key, Recipe.model_fields)}")
    try:
        return Recipe(**values)
    except ValidationError as error:
        raise UsageError(f"{where}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Put the first problem that pydantic found into one line."""
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"]) or "value"
    return f"{field}: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes that ftbench ships, with their TOML."""
    folder = files("ftbench") / "recipes"
    return {
        entry.name.removesuffix(".toml"): entry.read_text("utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }


def read_recipe(name_or_path: str) -> Recipe:
    """Read a shipped recipe by name, or any recipe by the path of its TOML file.

    Raises:
        UsageError: no such recipe, unreadable TOML, or an invalid value.
    """
    shipped = shipped_recipes()
    if name_or_path in shipped:
        text = shipped[name_or_path]
    elif name_or_path.endswith(".toml") or "/" in name_or_path:
        try:
            text = Path(name_or_path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"cannot read recipe {name_or_path}: {getattr(error, 'strerror', None) or error}"
            ) from error
    else:
        raise UsageError(f"no such recipe '{name_or_path}'; {nearest(name_or_path, shipped)}")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe {name_or_path}: not valid TOML: {error}") from error
    return build_recipe(values, where=f"recipe {name_or_path}")
