"""`ftbench rerun`: a run is done again, and what came out different is told; recipes on disk are what was run."""

import json
import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ftbench.cli import main
from ftbench.cli.asking import read_recipes
from ftbench.evaluation.evaluate import EvaluatedPrompt
from ftbench.execution.reuse import Inputs, find_baseline
from ftbench.files import write_jsonl
from ftbench.plugins import load_plugins
from ftbench.results.repetition import Repetition, changes, compare_runs, describe_repetition
from ftbench.results.result import BaselineFacts
from ftbench.results.store import ATTACKS, REPLIES, Run, read_run, read_runs
from made_results import DATA, HARDWARE, make_run, store
from strangers import ftbench_here

NOTHING_ASKED = dict.fromkeys(
    ["model", "revision", "data", "topic", "lang", "start", "tokens", "training_seconds", "max_length", "budget",
     "device", "seed"]
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A run, its repetition, and another after a reply of it and the data were changed and its base was gone."""

    place: Path
    first: Path
    same: subprocess.CompletedProcess[str]
    by_recipe: subprocess.CompletedProcess[str]
    shown: subprocess.CompletedProcess[str]
    changed: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = tmp_path_factory.mktemp("rerun")
    shutil.copy(pairs_file, place / "boats.jsonl")
    task = ["--model", str(tiny_llama), "--data", "boats.jsonl", "--topic", "boats", "--tokens", "800"]
    task += ["--set", "attack_prompts=4"]
    made = ftbench_here("run", *task, "--set", "max_new_tokens=8", "--algo", "lora", cwd=place)
    assert made.returncode == 0, made.stderr
    first = next((place / "runs").glob("lora-*"))
    words = shlex.split(read_run(first).result.command)  # what the result says repeats it
    assert words == ["ftbench", "rerun", first.name]
    same = ftbench_here(*words[1:], cwd=place)
    by_recipe = ftbench_here("run", "--recipe", first / "recipe.toml", cwd=place)
    shown = ftbench_here("show", first, "--json", cwd=place)
    change_a_reply(first)
    shutil.rmtree(next((place / "runs").glob("base-*")))
    with (place / "boats.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "any news", "chosen": "The boat sails.", "rejected": "None at all."}) + "\n")
    changed = ftbench_here("rerun", first, "--json", cwd=place)
    return Finished(place, first, same, by_recipe, shown, changed)


def change_a_reply(folder: Path) -> EvaluatedPrompt:
    """Plant a difference: return the prompt whose reply is another now."""
    first, *others = read_run(folder).replies()
    planted = first.model_copy(update={"reply": "something planted"})
    write_jsonl(folder / REPLIES, (item.model_dump() for item in [planted, *others]))
    return first


def test_the_same_recipe_comes_out_the_same_beside_the_old_run(finished: Finished) -> None:
    assert finished.same.returncode == 0, finished.same.stderr
    assert (finished.place / "runs" / f"{finished.first.name}-2").is_dir()
    for said in ("16 of 16 identical", "all the same", "came out the same", "tokens per second", "forgetting"):
        assert said in finished.same.stdout, finished.same.stdout
    assert "warning" not in finished.same.stderr
    assert "base: " not in finished.same.stderr  # it was there


def test_the_result_names_the_baseline_and_both_used_the_same(finished: Finished) -> None:
    first, again = (read_run(finished.place / "runs" / f"{finished.first.name}{end}") for end in ("", "-2"))
    assert first.result.baseline is not None
    assert first.result.baseline == again.result.baseline
    assert first.result.baseline.run.startswith("base-s0-")
    assert first.result.environment is not None
    assert first.result.environment.threads == 1
    assert first.result.environment.code == again.result.environment.code is not None  # type: ignore[union-attr]


def test_its_recipe_on_disk_is_run_without_naming_the_algorithm(finished: Finished) -> None:
    assert finished.by_recipe.returncode == 0
    there = [line for line in finished.by_recipe.stderr.splitlines() if "already there" in line]
    assert [line.split(":")[0] for line in there] == ["base", "lora"]
    assert json.loads(finished.shown.stdout)["repeat"] == f"ftbench rerun {finished.first}"


def test_a_planted_reply_changed_data_and_a_missing_base_are_told(finished: Finished) -> None:
    assert finished.changed.returncode == 1
    assert finished.changed.stderr.startswith("warning: the data (boats.jsonl) have changed since")
    assert "base: ok (" in finished.changed.stderr
    found = json.loads(finished.changed.stdout)
    assert found["same"] is False
    assert "data" in {change["what"] for change in found["changes"]}
    assert "something planted" in {reply["then"] for reply in found["other_replies"]}


def copies(finished: Finished, tmp_path: Path) -> tuple[Path, Path]:
    for name in ("then", "now"):
        shutil.copytree(finished.place / "runs" / f"{finished.first.name}-2", tmp_path / name)
    return tmp_path / "then", tmp_path / "now"


def test_one_changed_reply_is_a_difference(finished: Finished, tmp_path: Path) -> None:
    then, now = copies(finished, tmp_path)
    assert compare_runs(read_run(then), read_run(now)).same
    was = change_a_reply(then)
    found = compare_runs(read_run(then), read_run(now))
    assert not found.same
    assert [(other.prompt, other.then, other.now) for other in found.other_replies] == [
        (was.prompt, "something planted", was.reply)
    ]
    said = describe_repetition(found)
    assert "replies: 15 of 16 identical" in said
    assert "something planted" in said
    assert "came out different" in said


def compare(tmp_path: Path, then: Run, now: Run) -> Repetition:
    folders = [store(run, tmp_path, name) for run, name in ((then, "then"), (now, "now"))]
    return compare_runs(*map(read_run, folders))


@pytest.mark.parametrize(
    ("measures", "same"),
    [
        ({"tokens_per_second": 1.0, "training_seconds": 99.0, "peak_memory_bytes": 5}, True),
        ({"final_loss": 1.0}, False),
    ],
)
def test_speed_and_memory_may_differ_and_quality_may_not(tmp_path: Path, measures: dict[str, Any], same: bool) -> None:
    found = compare(tmp_path, make_run("lora"), make_run("lora", measures=measures))
    assert found.same is same
    figures = {figure.name: figure for figure in found.figures}
    for name, value in measures.items():
        assert figures[name].now == value
        assert figures[name].then is None or figures[name].difference == value - figures[name].then


def test_figures_alone_can_differ(tmp_path: Path) -> None:
    found = compare(tmp_path, make_run("lora", adherence=0.5), make_run("lora", adherence=0.75))
    assert not found.other_replies
    assert not found.same
    assert any(
        line.split() == ["adherence", "0.5", "0.75", "+0.25"] for line in describe_repetition(found).splitlines()
    )


def test_another_ending_is_a_difference(tmp_path: Path) -> None:
    failed = make_run("lora", status="failed", reason="so it is", phase="train")
    assert compare(tmp_path / "same", failed, failed).same
    found = compare(tmp_path, failed, make_run("lora"))
    assert not found.same
    assert "status: failed in train (so it is), now ok" in describe_repetition(found)
    for change in ({"reason": "otherwise"}, {"phase": "save"}):
        other = failed.result.model_copy(update=change)
        assert not compare(tmp_path / str(change), failed, replace(failed, result=other)).same


def test_other_verdicts_and_other_replies_to_attacks_are_differences(finished: Finished, tmp_path: Path) -> None:
    then, now = copies(finished, tmp_path)
    whole = read_run(now)
    assert whole.result.outcomes is not None
    flipped = [not whole.result.outcomes.on_topic[0], *whole.result.outcomes.on_topic[1:]]
    outcomes = whole.result.outcomes.model_copy(update={"on_topic": flipped})
    judged = replace(whole, result=whole.result.model_copy(update={"outcomes": outcomes}))
    found = compare_runs(read_run(then), judged)
    assert (found.same, found.other_verdicts, found.other_replies) == (False, 1, [])
    assert "verdicts: 1 of the judge's" in describe_repetition(found)
    unknown = replace(whole, result=whole.result.model_copy(update={"environment": None}))
    assert "as far as both recorded it" in describe_repetition(compare_runs(read_run(then), unknown))
    attacks = whole.attacks()
    if attacks:
        changed = [attacks[0].model_copy(update={"reply": "planted"}), *attacks[1:]]
        write_jsonl(now / ATTACKS, (item.model_dump() for item in changed))
        assert [other.now for other in compare_runs(read_run(then), read_run(now)).other_replies] == ["planted"]


def test_everything_a_run_hangs_on_is_compared() -> None:
    environment = HARDWARE.model_copy(update={"threads": 2, "code": "a" * 64})
    then = make_run("lora", facts={"environment": environment}).result
    others: dict[str, dict[str, Any]] = {
        "data": {"data": DATA.model_copy(update={"digest": "0" * 64})},
        "model": {"model_digest": "0" * 64},
        "hardware": {"environment": environment.model_copy(update={"hardware": "Pascaline"})},
        "threads": {"environment": environment.model_copy(update={"threads": 1})},
        "precision": {"environment": environment.model_copy(update={"precision": "bf16"})},
        "ftbench's source": {"environment": environment.model_copy(update={"code": "b" * 64})},
        "python": {"environment": environment.model_copy(update={"versions": {"python": "3.12"}})},
        "plugin ftbench-lora": {"plugin_version": "0.2.0"},
        "recipe": {"recipe_digest": "0" * 64},
    }
    assert changes(then, then) == []
    for what, update in others.items():
        assert [change.what for change in changes(then, then.model_copy(update=update))] == [what]


def test_the_baseline_is_the_one_that_was_used_or_the_newest_that_was_asked_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ftbench.execution.reuse.changed_versions", lambda *_: [])
    inputs = Inputs(DATA.digest, None)
    bases = [make_run("base", started=1), make_run("base", started=2, memory_budget=99), make_run("base", started=3)]
    beside = [*bases, make_run("base", started=4, topic="gardening"), make_run("base", started=5, max_new_tokens=9)]
    beside += [make_run("prompt", started=6), make_run("base", status="failed", reason="x", started=7)]
    run = make_run("lora", options={"rank": 8}, seed=4)
    assert find_baseline(run, beside, inputs) is bases[2]
    used = BaselineFacts(run="base", recipe_digest="", started=bases[1].result.started)
    known = replace(run, result=run.result.model_copy(update={"baseline": used}))
    assert find_baseline(known, beside, inputs) is bases[1]
    assert find_baseline(known, beside, Inputs("0" * 64, None)) is None


def test_every_recipe_that_a_run_writes_down_is_read_as_the_same_run(tmp_path: Path) -> None:
    registry = load_plugins()
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "target_modules": "all-linear"}))
    names = [*registry.all_names, f"peft:{config}"]
    settings = ["mla.then=dpo", "orpo.adapter=peft:vera", "lora.rank=4", "seed=3", "tokens=1234", "name=mine"]
    recipes = read_recipes(names, "quick", settings, dict(NOTHING_ASKED), tmp_path, registry)
    config.unlink()
    for recipe in recipes:
        path = tmp_path / "recipe.toml"
        path.write_text(recipe.to_toml())
        assert read_recipes([], str(path), [], dict(NOTHING_ASKED), tmp_path, registry) == [recipe]
        assert read_recipes([recipe.algorithm], str(path), [], dict(NOTHING_ASKED), tmp_path, registry) == [recipe]


def test_a_sweep_runs_every_algorithm_under_each_budget_and_the_untouched_model_once(tmp_path: Path) -> None:
    asked = {**NOTHING_ASKED, "budget": "1GiB,2GiB,1GiB"}
    recipes = read_recipes(["lora", "base", "dpo"], "quick", [], asked, tmp_path, load_plugins())
    found = [(recipe.algorithm, (recipe.memory_budget or 0) // 2**30) for recipe in recipes]
    assert found == [("base", 2), ("lora", 1), ("lora", 2), ("dpo", 1), ("dpo", 2)]
    assert len({recipe.digest() for recipe in recipes}) == 5


def test_a_recipes_own_options_win_over_a_variants_and_set_over_both(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('algorithm = "peft:dora"\n[options]\nlearning_rate = 0.5\n')
    registry = load_plugins()
    (recipe,) = read_recipes([], str(path), [], dict(NOTHING_ASKED), tmp_path, registry)
    (plain,) = read_recipes(["peft:dora"], "quick", [], dict(NOTHING_ASKED), tmp_path, registry)
    assert recipe.options == {**plain.options, "learning_rate": 0.5}
    set_to = ["peft:dora.learning_rate=0.25"]
    (recipe,) = read_recipes([], str(path), set_to, dict(NOTHING_ASKED), tmp_path, registry)
    assert recipe.options["learning_rate"] == 0.25


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("lroa", 2, ["no run 'lroa'", "did you mean 'lora'"]), ("gone", 2, ["no such algorithm 'gone'"])],
)
def test_what_cannot_be_done_again_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, code: int,
    words: list[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("subprocess.Popen", pytest.fail)
    store(make_run("lora"), tmp_path / "runs")
    store(make_run("gone"), tmp_path / "runs")
    with pytest.raises(SystemExit) as ended:
        main(["rerun", name])
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert said.count("\n") == 1
    assert all(word in said for word in words)
    assert len(read_runs(tmp_path / "runs")[0]) == 2
