"""`ftbench run --from RUN`: training that starts from an earlier run's model."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ftbench.data.task import EvaluationPrompt, build_task
from ftbench.errors import UsageError
from ftbench.execution.reuse import same_start
from ftbench.execution.starting import find_start
from ftbench.files import write_json
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.store import Run, find_run, read_run, read_runs
from one_line import one_line
from strangers import ftbench_here

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
    first = ftbench_here("run", *task, *out, "--algo", "lora", "--set", "lora.learning_rate=1e-2", cwd=place)
    second = ftbench_here("run", *task, *out, "--algo", "dpo", "--from", "lora", cwd=place)
    third = ftbench_here("run", *task, *out, "--algo", "full", "--algo", "prompt", "--from", "dpo", cwd=place)
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
    table = ftbench_here("table", "--out", "runs", cwd=place).stdout
    assert "started from" in table
    assert "lora-s0-" in table
    assert table.count("| base") == 1  # one table: they share the task


def test_show_names_the_start(runs: dict[str, Run], place: Path) -> None:
    assert "started from" in ftbench_here("show", "dpo", "--out", "runs", cwd=place).stdout


def test_a_start_that_saw_what_is_held_out_is_refused(
    runs: dict[str, Run], task: list[str], tiny_llama: Path, place: Path
) -> None:
    start = find_start(runs["dpo"].result.recipe, load_plugins())
    assert start is not None
    recipe = runs["dpo"].result.recipe
    digest = runs["dpo"].result.model_digest
    assert digest is not None
    same = build_task(recipe.data, recipe.topic, recipe.lang, recipe.evaluation_prompts)
    start.check(same, digest)
    fewer = build_task(recipe.data, recipe.topic, recipe.lang, 4)
    start.check(fewer, digest)  # what is held out now was held out then
    swapped = dataclasses.replace(same, evaluation=(EvaluationPrompt(same.train[0].prompt, "tea"),))
    with one_line(start.run.folder.name, "trained on 1 of the prompts"):
        start.check(swapped, digest)
    with one_line(start.run.folder.name, "another now"):
        start.check(same, "0" * 64)


def test_data_that_changed_since_the_start_are_told(runs: dict[str, Run], pairs_file: Path) -> None:
    start = find_start(runs["dpo"].result.recipe, load_plugins())
    assert start is not None
    other = start.run.result.model_copy(
        update={"data": start.run.result.data.model_copy(update={"digest": "0" * 64})}  # type: ignore[union-attr]
    )
    changed = dataclasses.replace(start, run=dataclasses.replace(start.run, result=other))
    recipe = other.recipe
    with one_line("its data", "have changed"):
        changed.check(
            build_task(recipe.data, recipe.topic, recipe.lang, recipe.evaluation_prompts), other.model_digest or ""
        )


def test_what_cannot_be_folded_in_is_no_start(task: list[str], place: Path, runs: dict[str, Run]) -> None:
    small = ["--set", "peft:prompt_tuning.settings={num_virtual_tokens=4}"]
    first = ftbench_here("run", *task, "--out", "beside", "--algo", "peft:prompt-tuning", *small, cwd=place)
    assert first.returncode == 0, first.stderr
    done = ftbench_here("run", *task, "--out", "beside", "--algo", "dpo", "--from", "peft:prompt_tuning", cwd=place)
    assert "dpo: skipped: cannot start from peft-prompt_tuning-s0-" in done.stderr, done.stderr
    assert "cannot be folded into" in done.stderr


def test_runs_may_be_moved_together(runs: dict[str, Run], place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "runs", tmp_path / "moved")
    recipe = runs["full"].result.recipe
    moved = recipe.change(start=str(tmp_path / "moved" / runs["dpo"].folder.name))
    gone = read_run(tmp_path / "moved" / runs["dpo"].folder.name)
    assert gone.result.recipe.start is not None
    chain = find_start(moved, load_plugins())
    assert chain is not None
    assert chain.before is not None
    lost = recipe.change(start="/nowhere/" + runs["dpo"].folder.name)
    found = find_start(lost, load_plugins(), beside=tmp_path / "moved")
    assert found is not None
    assert found.run.folder.parent == tmp_path / "moved"


def test_a_run_is_made_again_when_its_start_was(runs: dict[str, Run]) -> None:
    assert same_start(runs["dpo"].result)
    facts = runs["dpo"].result.start
    assert facts is not None
    earlier = facts.model_copy(update={"started": "2020-01-01T00:00:00.000+00:00"})
    assert not same_start(runs["dpo"].result.model_copy(update={"start": earlier}))


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
    done = ftbench_here("run", *task, "--out", "runs", "--algo", "dpo", *arguments, cwd=place)
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
