"""What a run trains on, in which steps, and how these are cut under its memory budget."""

from copy import deepcopy
from dataclasses import asdict
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from ftbench.algorithm import Algorithm
from ftbench.data.task import TaskData
from ftbench.errors import Unpredictable
from ftbench.execution.forecast import Question, forecast, ways_to_cut
from ftbench.execution.once import once
from ftbench.memory.budget import budget_for, room_under
from ftbench.memory.plan import Forecast, choose, smallest
from ftbench.memory.standin import standing_in_for
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import context_length
from ftbench.recipe import Recipe
from ftbench.results.result import MemoryPlan
from ftbench.training.batching import Plan
from ftbench.training.encoding import Encoded, encode

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def encode_training(
    recipe: Recipe,
    algorithm: Algorithm,
    data: TaskData,
    chat: ChatFormat,
    config: "PreTrainedConfig",
    model_digest: str | None = None,
) -> Encoded:
    """Turn the training examples into tokens: once for all runs of a model whose digest is known.

    Raises:
        Skip, FtbenchError: as `encode` does.
    """
    limit = min(recipe.max_length, context_length(config))
    preferences = algorithm.needs == "preferences"

    def make() -> Encoded:
        return encode(data.train, chat, limit, preferences=preferences)

    if model_digest is None:
        return make()
    of = {"model": model_digest, "data": data.digest(), "system": chat.system, "limit": limit, "pairs": preferences}
    return once("tokens", of, TypeAdapter(Encoded), make)


def plan_steps(recipe: Recipe, encoded: Encoded) -> Plan:
    """Turn what is trained on into the steps of a training."""
    tokens, batch, seconds = recipe.tokens, recipe.effective_batch_size, recipe.training_seconds
    return Plan(encoded.examples, tokens, batch, recipe.seed, seconds)


def plan_memory(recipe: Recipe, algorithm: Algorithm, question: Question, device: str) -> MemoryPlan:
    """Choose how to cut a step: the largest micro-batch that should fit under the recipe's budget.

    Without a budget, or where not even the smallest should fit, the largest or the smallest peak is what it stays at;
    where nothing can be predicted, the recipe's micro-batch.

    Args:
        recipe: with its budget.
        algorithm: as it will be run; not changed.
        question: to be forecast.
        device: "cpu" or "cuda", what the budget is for.

    Raises:
        Skip: the algorithm does not apply to the model.
        FtbenchError: the model's configuration cannot be read.
    """
    largest, *others = ways_to_cut(question.plan, recipe.micro_batch_tokens)
    room = None if recipe.memory_budget is None else room_under(recipe.memory_budget, device)
    try:
        with standing_in_for(device):
            forecasts = forecast(question, deepcopy(algorithm), [largest])
            if room is None:
                return _as_plan(forecasts[0], None, device)
            if choose(forecasts, room) is None and not forecasts[0].least:  # probing takes time: only where it may help
                forecasts += forecast(question, deepcopy(algorithm), others)
    except Unpredictable as error:
        return MemoryPlan(micro_batch_tokens=recipe.micro_batch_tokens, checkpointing=False, reason=str(error))
    fitting, least = choose(forecasts, room), smallest(forecasts)
    plan = _as_plan(fitting or least, fitting is not None, device)
    return plan if fitting else plan.model_copy(update={"needed_bytes": budget_for(least.need, device)})


def _as_plan(chosen: Forecast, fits: bool | None, device: str) -> MemoryPlan:
    return MemoryPlan(
        micro_batch_tokens=chosen.cut.micro_batch_tokens,
        checkpointing=chosen.cut.checkpointing,
        accumulation=chosen.accumulation,
        fits=fits,
        predicted_bytes=chosen.peak.total,
        predicted_parts=asdict(chosen.peak),
        moment=chosen.moment,
        loading_bytes=chosen.load,
        needed_bytes=budget_for(chosen.need, device),
    )
