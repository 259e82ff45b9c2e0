"""Plans for runs that are not made: from a model's configuration, the data where its tokenizer is there, no weights."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ftbench.algorithm import Algorithm
from ftbench.data.task import TaskData
from ftbench.errors import ContractError, FtbenchError, Skip
from ftbench.execution.blame import blame
from ftbench.execution.fitting import encode_training, plan_memory, plan_steps
from ftbench.execution.forecast import Question
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import context_length, load_tokenizer
from ftbench.models.precision import Precision, choose_precision
from ftbench.models.resolve import locate_description
from ftbench.models.skeleton import load_config
from ftbench.recipe import Recipe
from ftbench.registry import Registry
from ftbench.results.result import MemoryPlan
from ftbench.training.batching import Plan
from ftbench.training.encoding import Encoded, EncodedExample, TokenSequence

if TYPE_CHECKING:
    import torch


class PlannedRun(BaseModel):
    """What is predicted for a recipe; `reason` says why there is no plan, or why nothing could be predicted."""

    model_config = ConfigDict(frozen=True)

    algorithm: str
    memory_budget: int | None
    plan: MemoryPlan | None = None
    reason: str | None = None


@dataclass
class Planner:
    """Plans one recipe after the other; what several need is read once. `notes` says what holds for all."""

    registry: Registry
    notes: list[str] = field(default_factory=list)
    _known: dict[tuple[object, ...], TaskData] = field(default_factory=dict)
    _encoded: dict[tuple[object, ...], Encoded] = field(default_factory=dict)

    def plan(self, recipe: Recipe) -> PlannedRun:
        """Predict a recipe's training.

        Raises:
            FtbenchError: the model's configuration or the data cannot be read.
        """
        import torch

        about = {"algorithm": recipe.algorithm, "memory_budget": recipe.memory_budget}
        algorithm = self.registry.make(recipe.algorithm, recipe.options)
        if algorithm.needs == "nothing":
            return PlannedRun(**about, reason="nothing is trained")
        try:
            reason = algorithm.skip(recipe)
        except Exception as error:  # a stranger's code may raise anything
            return PlannedRun(**about, reason=f"would fail: {blame(error, self.registry, algorithm.name)}")
        if reason is not None:
            return PlannedRun(**about, reason=f"skipped: {reason}")
        folder = locate_description(recipe.model, recipe.revision, self.registry.models)
        # Without a card the CPU's kernels stand in for CUDA's.
        probed = _device(recipe) if torch.cuda.is_available() else "cpu"
        try:
            training, device = self._training(recipe, algorithm, folder), torch.device(probed)
            question = Question(
                _config(folder), training, device, _precision(recipe, device), recipe.start, recipe.devices
            )
            absent = (
                "; there is none here: the processor's kernels stand in for a card's"
                if _is_absent(recipe, probed)
                else ""
            )
            self._note(f"planned for {_device(recipe)}, in {question.precision}{absent}")
            plan = plan_memory(recipe, algorithm, question, _device(recipe))
        except Skip as error:
            return PlannedRun(**about, reason=f"skipped: {error}")
        except ContractError as error:
            return PlannedRun(**about, reason=f"would fail: {blame(error, self.registry, algorithm.name)}")
        if plan.reason:
            return PlannedRun(**about, reason=f"cannot be predicted: {plan.reason}")
        return PlannedRun(**about, plan=plan)

    def _training(self, recipe: Recipe, algorithm: Algorithm, folder: Path) -> Plan:
        config = _config(folder)
        try:
            tokenizer = _tokenizer(folder)
        except FtbenchError:
            self._note("the model's tokenizer is not there: every sequence is taken to be as long as the recipe allows")
            return _longest(recipe, min(recipe.max_length, context_length(config)), algorithm)
        data = self._read(recipe)
        chat = ChatFormat(tokenizer, self.registry.instruct(algorithm, recipe).system_prompt(data.topic))
        key = (folder, data.digest(), chat.system, recipe.max_length, algorithm.needs)
        if key not in self._encoded:
            self._encoded[key] = encode_training(recipe, algorithm, data, chat, config)
        return plan_steps(recipe, self._encoded[key])

    def _read(self, recipe: Recipe) -> TaskData:
        """Read the data once for all recipes that read the same."""
        key = (recipe.task, recipe.data, recipe.topic, recipe.lang, recipe.evaluation_prompts, recipe.split)
        if key not in self._known:
            self._known[key] = self.registry.read_task(recipe)
        return self._known[key]

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


_config = cache(load_config)
_tokenizer = cache(load_tokenizer)


def _device(recipe: Recipe) -> str:
    """What is planned for; a card may be asked for where there is none."""
    import torch

    return "cuda" if recipe.device == "cuda" or (recipe.device == "auto" and torch.cuda.is_available()) else "cpu"


def _precision(recipe: Recipe, probed: "torch.device") -> Precision:
    """What a run would compute in; a card that is not there is taken to have bf16, as all of this decade do."""
    absent = _is_absent(recipe, probed.type)
    return "bf16" if absent and recipe.precision == "auto" else choose_precision(recipe.precision, probed)


def _is_absent(recipe: Recipe, probed: str) -> bool:
    return _device(recipe) == "cuda" and probed != "cuda"


def _longest(recipe: Recipe, length: int, algorithm: Algorithm) -> Plan:
    """Steps of sequences of full length, all of it completion but the first token."""
    sequence = TokenSequence((0,) * length, 1)
    example = EncodedExample(sequence, sequence if algorithm.needs == "preferences" else None)
    batch = recipe.effective_batch_size
    return Plan((example,) * batch, batch * example.tokens, batch, recipe.seed)
