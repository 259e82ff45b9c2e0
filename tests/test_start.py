"""`ftbench run --from RUN`: training that starts from an earlier run's model."""

import json
import subprocess
from pathlib import Path

import pytest

from ftbench.errors import UsageError
from ftbench.execution.starting import find_start
from ftbench.files import write_json
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.store import Run, find_run, read_runs
from one_line import one_line
from strangers import ftbench

SETTINGS = ["--tokens", "1500", "--set", "max_new_tokens=8"]


@pytest.fixture(scope="module")
def task(tiny_llama: Path, pairs_file: Path) -> list[str]:
    return ["--model", str(tiny_llama), "--data", str(pairs_file), "--topic", "boats", *SETTINGS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def calls(task: list[str], place: Path) -> list[subprocess.CompletedProcess[str]]:
    """LoRA, DPO from LoRA, and full fine-tuning from that."""
    out = ["--out", "runs"]
    first = ftbench("run", *task, *out, "--algo", "lora", "--set", "lora.learning_rate=1e-2", cwd=place)
    second = ftbench("run", *task, *out, "--algo", "dpo", "--from", "lora", cwd=place)
    third = ftbench("run", *task, *out, "--algo", "full", "--algo", "prompt", "--from", "dpo", cwd=place)
    return [first, second, third]


@pytest.fixture(scope="module")
def runs(calls: list[subprocess.CompletedProcess[str]], place: Path) -> dict[str, Run]:
    assert [call.returncode for call in calls] == [0, 0, 0], [call.stderr for call in calls]
    return {run.result.recipe.algorithm: run for run in read_runs(place / "runs")[0]}


def test_the_start_is_recorded(runs: dict[str, Run]) -> None:
    start = runs["dpo"].result.start
    assert start is not None
    assert (start.run, start.algorithm) == (runs["lora"].folder.name, "lora")
    assert start.recipe_digest == runs["lora"].result.recipe_digest
    assert runs["full"].result.start is not None
    assert runs["full"].result.start.run == runs["dpo"].folder.name
    assert all(runs[name].result.start is None for name in ("base", "prompt", "lora"))


def test_from_a_run_dpo_has_no_supervised_stage(runs: dict[str, Run]) -> None:
    rows = [json.loads(line) for line in (runs["dpo"].folder / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"train"}
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # the reference is the run that it started from


def test_training_went_on_from_that_run(runs: dict[str, Run]) -> None:
    first = json.loads((runs["full"].folder / "metrics.jsonl").read_text().splitlines()[0])
    untouched = json.loads((runs["lora"].folder / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] < untouched["loss"] - 0.05


def test_forgetting_is_still_counted_from_the_untouched_model(runs: dict[str, Run]) -> None:
    assert all(runs[name].result.measures.forgetting is not None for name in ("dpo", "full"))
    assert {run.result.status for run in runs.values()} == {"ok"}


def test_the_table_says_where_a_row_started(calls: list[subprocess.CompletedProcess[str]], place: Path) -> None:
    table = ftbench("table", "--out", "runs", cwd=place).stdout
    assert "started from" in table
    assert "lora-s0-" in table
    assert table.count("| base") == 1  # one table: they share the task


def test_show_names_the_start(runs: dict[str, Run], place: Path) -> None:
    assert "started from" in ftbench("show", "dpo", "--out", "runs", cwd=place).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "lroa"], ["--from lroa", "no run 'lroa'", "did you mean"]),
        (["--from", "base"], ["cannot start from", "holds no model"]),
        (["--from", "lora", "--model", "smollm2-135m-instruct"], ["cannot start from", "changed the model", "--model"]),
    ],
)
def test_a_start_that_cannot_be_is_one_line_before_any_run(
    runs: dict[str, Run], task: list[str], place: Path, arguments: list[str], words: list[str]
) -> None:
    before = set((place / "runs").iterdir())
    done = ftbench("run", *task, "--out", "runs", "--algo", "dpo", *arguments, cwd=place)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert set((place / "runs").iterdir()) == before


def test_a_run_that_failed_is_no_start(runs: dict[str, Run], tmp_path: Path) -> None:
    failed = runs["lora"].result.model_copy(update={"status": "failed", "reason": "it did", "phase": "train"})
    (tmp_path / "failed").mkdir()
    write_json(tmp_path / "failed" / "result.json", failed.model_dump(mode="json"))
    recipe = Recipe(algorithm="dpo", start=str(find_run(str(tmp_path / "failed"), tmp_path).folder))
    with one_line("cannot start from", "is failed", kind=UsageError):
        find_start(recipe, load_plugins())
