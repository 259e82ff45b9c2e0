"""Memory budgets enforced for real: the same recipe fits under one, and ends as out-of-memory under a part of it."""

import os
import sys
from pathlib import Path

import pytest

from ftbench.checking.tiny import make_llama
from ftbench.execution.local import launch
from ftbench.execution.planning import Planner
from ftbench.memory.budget import format_bytes, parse_bytes
from ftbench.models.loading import weight_bytes
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.rows import build_groups
from ftbench.results.store import Run
from ftbench.results.table import render
from strangers import install
from working_here import quick_recipe

REGISTRY = load_plugins()
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the budget of a process")
PART = 0.5
"""Of the smallest budget that does: less than the tensors alone, and so too little whatever else stands in memory."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, pairs_file: Path) -> Recipe:
    """Full fine-tuning of a Llama of some 30 million parameters, 125 MB of weights, for a few steps."""
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 10, "num_key_value_heads": 4}
    folder = make_llama(tmp_path_factory.mktemp("middle"), **sizes)
    algorithm = REGISTRY.make("full", {})
    return Recipe(
        algorithm="full",
        options=algorithm.config.model_dump(mode="json"),
        model=str(folder),
        data=str(pairs_file),
        topic="boats",
        tokens=1500,
        effective_batch_size=6,
        max_new_tokens=4,
        evaluation_prompts=4,
        attack_prompts=0,
        checkpoints=0,
        # In bf16 AdamW's step is the peak however a step is cut, and nothing is left to choose.
        precision="float32",
    )


@pytest.fixture(scope="module")
def needs(recipe: Recipe) -> tuple[int, int, int]:
    """Budgets that should do, for a whole step at once and the smallest, and the tensors under that."""
    planner = Planner(REGISTRY)
    whole, smallest = planner.plan(recipe).plan, planner.plan(recipe.change(memory_budget=2**20)).plan
    assert whole is not None
    assert smallest is not None
    assert whole.needed_bytes is not None
    assert smallest.needed_bytes is not None
    assert smallest.predicted_bytes is not None
    return whole.needed_bytes, smallest.needed_bytes, smallest.predicted_bytes


@pytest.fixture(scope="module")
def sweep(recipe: Recipe, needs: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """The runs under a budget for all at once, under the smallest, and under too little."""
    out = tmp_path_factory.mktemp("sweep")
    budgets = [needs[0], needs[1], int(PART * needs[1])]
    assert budgets[2] < needs[2] < budgets[1] < budgets[0]
    return [launch(recipe.change(memory_budget=budget), REGISTRY, out, None, lambda _: None) for budget in budgets]


def test_under_the_budget_that_the_plan_asks_for_the_run_is_ok(sweep: list[Run]) -> None:
    for index in (0, 1):
        result = sweep[index].result
        assert result.status == "ok", result.reason
        assert result.memory_plan is not None
        assert result.memory_plan.fits
        assert result.measures.reductions == []  # reality did not exceed the plan
        assert result.measures.micro_batch_tokens == result.memory_plan.micro_batch_tokens
        assert result.measures.peak_memory_bytes == pytest.approx(result.memory_plan.predicted_bytes, rel=0.05)
        assert result.measures.peak_memory_bytes == sum(result.measures.peak_parts.values())


def test_a_smaller_budget_changes_the_micro_batch_and_not_the_effective_batch(sweep: list[Run]) -> None:
    roomy, tight = sweep[0].result, sweep[1].result
    assert tight.measures.checkpointing
    assert not roomy.measures.checkpointing
    assert tight.measures.peak_memory_bytes is not None
    assert roomy.measures.peak_memory_bytes is not None
    assert tight.measures.peak_memory_bytes < roomy.measures.peak_memory_bytes
    assert tight.measures.optimiser_steps == roomy.measures.optimiser_steps
    assert tight.measures.training_prompts == roomy.measures.training_prompts
    assert tight.measures.final_loss == pytest.approx(roomy.measures.final_loss, rel=1e-3)


def test_under_half_of_that_budget_the_same_recipe_is_out_of_memory(
    sweep: list[Run], needs: tuple[int, int, int]
) -> None:
    enough, result = sweep[1].result, sweep[2].result
    assert (enough.status, result.status) == ("ok", "out-of-memory")
    assert enough.recipe.memory_budget is not None
    assert result.recipe == enough.recipe.change(memory_budget=int(PART * enough.recipe.memory_budget))
    assert result.phase == "train"
    assert result.reason is not None
    assert "should do (predicted)" in result.reason
    assert "\n" not in result.reason
    assert result.memory_plan is not None
    assert result.memory_plan.fits is False
    assert result.memory_plan.needed_bytes == pytest.approx(needs[1], rel=0.01)
    assert result.measures.phase_peak_bytes["train"] > 0
    # Counted up to where it failed: below the budget, above the weights.
    assert result.measures.memory_kind == "tensors"
    assert result.recipe.memory_budget is not None
    assert result.measures.peak_memory_bytes is not None
    assert result.measures.peak_parts["parameters"] < result.measures.peak_memory_bytes < result.recipe.memory_budget
    text = result.reason.split(" budget of ")[1].split(";")[0]
    assert parse_bytes(text) == pytest.approx(result.recipe.memory_budget, rel=0.01)


def test_all_budgets_stand_in_one_table_each_with_its_own(sweep: list[Run]) -> None:
    table = render(build_groups(sweep), "github").splitlines()
    lines = [line for line in table if line.startswith("| full")]
    assert len(lines) == 3
    heading = next(line for line in table if line.startswith("| algorithm"))
    assert "memory budget" in heading
    assert "micro-batch" in heading
    assert sum("out-of-memory" in line for line in lines) == 1
    assert sum("checkpointing" in line for line in lines) == 1


def test_the_untouched_model_under_less_than_its_weights_says_which_budget_may_do(
    recipe: Recipe, tmp_path: Path
) -> None:
    untrained = recipe.change(algorithm="base", options={}, memory_budget=20 * 2**20)
    result = launch(untrained, REGISTRY, tmp_path, None, lambda _: None).result
    assert (result.status, result.phase) == ("out-of-memory", "load")
    assert result.reason is not None
    assert "may do (from what was there when it failed)" in result.reason
    assert "\n" not in result.reason
    said = parse_bytes(result.reason.split("; ")[1].split(" may do")[0])
    assert said > weight_bytes(Path(recipe.model), "float32")
    assert result.measures.memory_kind == "resident"
    assert result.measures.peak_memory_bytes


def test_a_training_under_less_than_its_weights_ends_in_loading_and_says_what_would_do(
    recipe: Recipe, needs: tuple[int, int, int], tmp_path: Path
) -> None:
    budget = weight_bytes(Path(recipe.model), "float32") // 2
    result = launch(recipe.change(memory_budget=budget), REGISTRY, tmp_path, None, lambda _: None).result
    assert (result.status, result.phase) == ("out-of-memory", "load")
    assert result.memory_plan is not None
    assert result.memory_plan.fits is False
    assert result.memory_plan.needed_bytes == needs[1]
    assert result.reason is not None
    assert f"{format_bytes(needs[1])} should do (predicted)" in result.reason
    assert "\n" not in result.reason
    assert not (tmp_path / "model").exists()


GREEDY = """
import ftbench, torch
from torch._subclasses.fake_tensor import FakeTensor

class Greedy(ftbench.Algorithm):
    'Takes 2 GiB for whatever is more than one prompt, which no plan can see.'
    name = "greedy"
    def loss(self, logprobs):
        if not isinstance(logprobs.chosen.sums, FakeTensor) and len(logprobs.chosen.sums) > 1:
            torch.ones(2**31, dtype=torch.uint8)
        return logprobs.nll()

@ftbench.hookimpl
def ftbench_algorithms():
    return [Greedy]
"""


def test_a_training_that_takes_more_than_was_predicted_halves_and_goes_on(
    tiny_llama: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "ftbench-greedy", GREEDY)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    asked = quick_recipe(tiny_llama, pairs_file).change(algorithm="greedy", attack_prompts=0, memory_budget=2**30)
    result = launch(asked, load_plugins(), tmp_path / "runs", None, lambda _: None).result
    assert result.status == "ok", result.reason
    assert result.memory_plan is not None
    assert result.memory_plan.fits
    assert result.measures.reductions
    assert result.measures.reductions[0].step == 0
    assert result.measures.micro_batch_tokens == result.measures.reductions[-1].micro_batch_tokens
    assert result.measures.micro_batch_tokens < result.memory_plan.micro_batch_tokens
    assert result.measures.optimiser_steps
    assert result.measures.training_prompts == result.measures.optimiser_steps * asked.effective_batch_size
