"""Memory budgets enforced for real: the same recipe fits under one, and ends as out-of-memory under a part of it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ftbench.checking.tiny import make_llama
from ftbench.memory.budget import parse_bytes
from ftbench.results.store import Run, read_runs
from strangers import ftbench_here

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the budget of a process")
PART = 0.9
"""Of the tensors at the smallest peak: too little for sure, whatever else stands in memory."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, pairs_file: Path) -> list[str]:
    """A task for a Llama of 25 million parameters: 100 MB of weights."""
    sizes = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_key_value_heads": 4}
    folder = make_llama(tmp_path_factory.mktemp("middle"), **sizes)
    task = ["--model", str(folder), "--data", str(pairs_file), "--topic", "boats", "--tokens", "4000"]
    # In bf16 AdamW's step is the peak however a step is cut, and nothing is left to choose.
    task += ["--set", "precision=float32"]
    return [*task, "--set", "max_new_tokens=4", "--set", "effective_batch_size=6", "--algo", "full"]


@pytest.fixture(scope="module")
def needs(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int, int]:
    """Budgets that should do, for a whole step at once and the smallest, and the tensors under that."""

    def ask(*budget: str) -> dict[str, Any]:
        done = ftbench_here("plan", *settings, *budget, "--json", cwd=tmp_path_factory.mktemp("plan"))
        assert done.returncode == 0, done.stderr
        plan: dict[str, Any] = json.loads(done.stdout)[0]["plan"]
        return plan

    smallest = ask("--memory-budget", "1MiB")
    return ask()["needed_bytes"], smallest["needed_bytes"], smallest["predicted_bytes"]


@pytest.fixture(scope="module")
def sweep(
    settings: list[str], needs: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[int, Run]]:
    """The table, and the runs under a budget for all at once, under the smallest, and under too little."""
    out = tmp_path_factory.mktemp("sweep")
    budgets = [needs[0], needs[1], int(PART * needs[2])]
    done = ftbench_here("run", *settings, "--out", out, "--memory-budget", ",".join(map(str, budgets)), cwd=out)
    assert done.returncode == 1, done.stderr
    runs = {
        run.result.recipe.memory_budget or 0: run for run in read_runs(out)[0] if run.result.recipe.algorithm == "full"
    }
    return done.stdout, {index: runs[budget] for index, budget in enumerate(budgets)}


def test_under_the_budget_that_the_plan_asks_for_the_run_is_ok(sweep: tuple[str, dict[int, Run]]) -> None:
    for index in (0, 1):
        result = sweep[1][index].result
        assert result.status == "ok", result.reason
        assert result.memory_plan is not None
        assert result.memory_plan.fits
        assert result.measures.reductions == []  # reality did not exceed the plan
        assert result.measures.micro_batch_tokens == result.memory_plan.micro_batch_tokens
        assert result.measures.peak_memory_bytes == pytest.approx(result.memory_plan.predicted_bytes, rel=0.05)
        assert result.measures.peak_memory_bytes == sum(result.measures.peak_parts.values())


def test_a_smaller_budget_changes_the_micro_batch_and_not_the_effective_batch(
    sweep: tuple[str, dict[int, Run]],
) -> None:
    roomy, tight = sweep[1][0].result, sweep[1][1].result
    assert tight.measures.checkpointing
    assert not roomy.measures.checkpointing
    assert tight.measures.peak_memory_bytes is not None
    assert roomy.measures.peak_memory_bytes is not None
    assert tight.measures.peak_memory_bytes < roomy.measures.peak_memory_bytes
    assert tight.measures.optimiser_steps == roomy.measures.optimiser_steps
    assert tight.measures.training_prompts == roomy.measures.training_prompts
    assert tight.measures.final_loss == pytest.approx(roomy.measures.final_loss, rel=1e-3)


def test_under_less_than_its_tensors_the_same_recipe_is_out_of_memory(
    sweep: tuple[str, dict[int, Run]], needs: tuple[int, int, int]
) -> None:
    result = sweep[1][2].result
    assert result.status == "out-of-memory"
    assert result.phase == "train"
    assert result.reason is not None
    assert "should do (predicted)" in result.reason
    assert "\n" not in result.reason
    assert result.memory_plan is not None
    assert result.memory_plan.fits is False
    assert result.memory_plan.needed_bytes == pytest.approx(needs[1], rel=0.01)
    assert result.measures.phase_peak_bytes["train"] > 0
    text = result.reason.split(" budget of ")[1].split(";")[0]
    assert parse_bytes(text) == pytest.approx(result.recipe.memory_budget, rel=0.01)


def test_all_budgets_stand_in_one_table_each_with_its_own(sweep: tuple[str, dict[int, Run]]) -> None:
    lines = [line for line in sweep[0].splitlines() if line.startswith("| full")]
    assert len(lines) == 3
    heading = next(line for line in sweep[0].splitlines() if line.startswith("| algorithm"))
    assert "memory budget" in heading
    assert "micro-batch" in heading
    assert sum("out-of-memory" in line for line in lines) == 1
    assert sum("checkpointing" in line for line in lines) == 1


def test_a_budget_below_the_weights_and_one_beyond_the_machine_are_one_line_each(
    settings: list[str], tmp_path: Path
) -> None:
    done = ftbench_here("run", *settings, "--out", tmp_path, "--memory-budget", "20MiB,900TiB", cwd=tmp_path)
    assert done.returncode == 1
    runs = {run.result.recipe.memory_budget: run.result for run in read_runs(tmp_path)[0]}
    small = runs[20 * 2**20]
    assert small.status == "out-of-memory"
    assert small.phase == "load"
    beyond = runs[900 * 2**40]
    assert beyond.status == "failed"
    assert beyond.reason is not None
    assert "is more than the" in beyond.reason
    assert "Traceback" not in done.stdout + done.stderr
