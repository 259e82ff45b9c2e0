"""`ftbench run` end to end with a tiny model: what a run leaves, and what becomes of one that goes wrong.

All runs are made once, and the tests look at what they left: shipped algorithms' in this process, and those that end
their process or need one of their own apart from it, at the same time.
"""

import json
import math
import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ftbench.execution.local import launch
from ftbench.files import write_text
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe, read_recipe
from ftbench.results.result import Status
from ftbench.results.store import Run, publish, read_runs, run_name, staging
from strangers import FAULTS, ftbench, ftbench_here, install

Done = subprocess.CompletedProcess[str]
PEFT = ("peft:dora", "peft:ia3", "peft:oft", "peft:vera")
TRAINED = ("dpo", "full", "lora", "mla", "orpo", *PEFT, "simper", "simpo", "trl-sft", "trl-dpo", "trl-orpo")
SHIPPED = ("base", "prompt", *TRAINED)
SKIPPED = ("peft:oft",)
"""As peft's comparison sets it, OFT finds nothing to train in a model this small."""
FAULTY = ("raises", "killed", "crashes", "silent", "skips", "skip-raises", "zeroed")


@dataclass(frozen=True)
class Finished:
    """What the calls printed, and where they wrote."""

    first: Done
    second: Done
    fresh: Done
    faulty: Done
    slow: Done
    greedy: Done
    good_out: Path
    bad_out: Path

    def good(self) -> list[Run]:
        """Runs of the shipped algorithms that ended well, oldest first."""
        return [run for run in read_runs(self.good_out)[0] if run.result.status == "ok"]

    def bad(self, name: str) -> Run:
        """The first run of an algorithm in the strangers' folder."""
        return next(run for run in read_runs(self.bad_out)[0] if run.result.recipe.algorithm == name)


@pytest.fixture(scope="module")
def settings(tiny_llama: Path, pairs_file: Path) -> list[str]:
    """What all runs are given."""
    task = ["--model", str(tiny_llama), "--data", str(pairs_file), "--topic", "boats"]
    return [*task, "--tokens", "2000", "--set", "max_new_tokens=8"]


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Every run that the tests look at."""
    place = tmp_path_factory.mktemp("finished")
    plugins = install(tmp_path_factory.mktemp("site"), "ftbench-faults", FAULTS)
    good, bad = place / "good", place / "bad"

    def here(*arguments: str) -> Done:
        return ftbench_here("run", *settings, "--out", good, *arguments, cwd=place)

    def apart(*arguments: str) -> Done:
        return ftbench("run", *settings, "--out", bad, *arguments, plugins=plugins, cwd=place)

    with ThreadPoolExecutor(1) as pool:
        faulty = pool.submit(apart, *(part for name in FAULTY for part in ("--algo", name)))
        slow = pool.submit(apart, "--algo", "sleeps", "--time-limit", "2")
        greedy = pool.submit(apart, "--algo", "eats", "--memory-budget", "1GiB")
        shipped = here("--algo", "all"), here("--algo", "all"), here("--algo", "lora", "--fresh")
    return Finished(*shipped, faulty.result(), slow.result(), greedy.result(), good, bad)


def test_all_algorithms_end_in_one_table(finished: Finished) -> None:
    assert finished.first.returncode == 0, finished.first.stderr
    lines = finished.first.stderr.splitlines()
    assert [line.split(": ")[0] for line in lines if ": ok" in line or ": skipped" in line] == list(SHIPPED)
    for name in SHIPPED:
        status = "skipped" if name in SKIPPED else "ok"
        assert any(line.split()[1:4] == [name, "|", status] for line in finished.first.stdout.splitlines()), name
    assert "- peft:oft: skipped: OFT with these settings leaves nothing to train" in finished.first.stdout
    assert "ftbench show" in finished.first.stdout


def test_run_leaves_its_files_and_nothing_else(finished: Finished) -> None:
    assert not list(finished.good_out.glob(".*"))
    for run in finished.good():
        names = {path.name for path in run.folder.iterdir()}
        expected = {"recipe.toml", "result.json", "replies.jsonl", "attacks.jsonl", "log.txt"}
        if run.result.recipe.algorithm in TRAINED:
            expected |= {"metrics.jsonl", "model"}
            assert list((run.folder / "model").glob("*.safetensors"))
            assert not list((run.folder / "model").glob("*.bin"))
        assert names == expected
        assert run.folder.name.startswith(run_name(run.result.recipe))


def test_recipe_on_disk_is_the_one_in_the_result(finished: Finished) -> None:
    for run in finished.good():
        recipe = read_recipe(str(run.folder / "recipe.toml"))
        assert recipe == run.result.recipe
        assert recipe.digest() == run.result.recipe_digest


def test_a_result_names_its_plugin_and_the_versions_of_all_that_made_it(finished: Finished) -> None:
    registry = load_plugins()
    for run in finished.good():
        plugin = registry.plugin_of(run.result.recipe.algorithm)
        assert run.result.plugin == plugin.name
        assert run.result.plugin_version == plugin.version
        assert run.result.environment is not None
        assert run.result.environment.versions["torch"] == version("torch")


def test_metrics_add_up_to_the_result(finished: Finished) -> None:
    for run in finished.good():
        measures = run.result.measures
        if run.result.recipe.algorithm not in TRAINED:
            assert measures.training_tokens is None
            continue
        steps = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
        assert measures.optimiser_steps == len(steps)
        assert measures.training_tokens == steps[-1]["tokens"] >= run.result.recipe.tokens
        if run.result.recipe.algorithm == "mla":  # heals on texts of its own before
            continue
        assert measures.training_prompts == steps[-1]["prompts"] == run.result.recipe.effective_batch_size * len(steps)
        assert steps[-2]["tokens"] < run.result.recipe.tokens
        assert measures.training_seconds is not None
        assert measures.tokens_per_second == pytest.approx(steps[-1]["tokens"] / measures.training_seconds)
        assert measures.training_seconds >= steps[-1]["seconds"]


def test_replies_add_up_to_the_result_and_stand_beside_the_base_models(finished: Finished) -> None:
    runs = finished.good()
    base = {item.prompt: item.reply for item in runs[0].replies()}
    assert runs[0].result.recipe.algorithm == "base"
    for run in runs:
        replies, adherence = run.replies(), run.result.measures.adherence
        assert run.result.data is not None
        assert adherence is not None
        assert len(replies) == run.result.data.evaluation_prompts == adherence.n == 12
        assert adherence.mean == sum(item.on_topic for item in replies) / 12
        assert all(item.tokens <= 8 for item in replies)
        if run.result.recipe.algorithm != "base":
            assert {item.prompt: item.base_reply for item in replies} == base


def test_every_prompt_has_its_outcome_and_every_attack_its_reply(finished: Finished) -> None:
    for run in finished.good():
        outcomes, measures, replies = run.result.outcomes, run.result.measures, run.replies()
        assert outcomes is not None
        assert outcomes.on_topic == [item.on_topic for item in replies]
        assert outcomes.ordinary_tokens == [item.ordinary_tokens for item in replies]
        rows = [json.loads(line) for line in (run.folder / "attacks.jsonl").read_text("utf-8").splitlines()]
        assert measures.adherence_under_attack is not None
        assert measures.adherence_under_attack.n == len(rows) == len(outcomes.attacks_on_topic) >= 60
        assert len({row["kind"] for row in rows}) == 8
        assert [row["on_topic"] for row in rows] == outcomes.attacks_on_topic
        pairs = zip(outcomes.rise, outcomes.ordinary_tokens, strict=True)
        known = [(rise, tokens) for rise, tokens in pairs if rise is not None and tokens is not None]
        assert measures.forgetting is not None
        assert measures.forgetting.mean == pytest.approx(sum(rise for rise, _ in known) / sum(t for _, t in known))


def test_models_are_asked_midway_while_the_clock_stands(finished: Finished) -> None:
    for run in finished.good():
        measures = run.result.measures
        if run.result.recipe.algorithm not in TRAINED:
            assert not measures.checkpoints
            continue
        *midway, end = measures.checkpoints
        assert 3 <= len(midway) <= run.result.recipe.checkpoints == 5  # one step may pass two of them
        assert [row.tokens for row in measures.checkpoints] == sorted({row.tokens for row in measures.checkpoints})
        assert (end.tokens, end.seconds) == (measures.training_tokens, measures.training_seconds)
        few = run.replies()[: run.result.recipe.checkpoint_prompts]
        assert end.adherence == sum(item.on_topic for item in few) / len(few)
        assert measures.phase_seconds["checkpoints"] > 0
        assert measures.run_seconds == pytest.approx(sum(measures.phase_seconds.values()))
        assert measures.training_seconds is not None
        assert measures.training_seconds <= measures.phase_seconds["train"] + 0.1


def test_every_phase_has_its_peak_and_tensors_are_counted_where_the_documentation_says(finished: Finished) -> None:
    for run in finished.good():
        measures, name = run.result.measures, run.result.recipe.algorithm
        trained = name in TRAINED
        phases = {"load", "adapt", "train", "evaluate"} if trained else {"load", "evaluate"}
        assert all(measures.phase_peak_bytes[phase] > 0 for phase in phases), name
        assert set(measures.phase_tensor_bytes) == ({"adapt", "train"} if trained else {"evaluate"}), name
        assert measures.peak_memory_bytes == measures.phase_tensor_bytes["train" if trained else "evaluate"]
        assert measures.memory_kind == "tensors"


def test_second_call_runs_nothing_and_prints_the_table(finished: Finished) -> None:
    assert finished.second.returncode == 0
    there = [line.split(": ")[0] for line in finished.second.stderr.splitlines() if "already there" in line]
    assert there == [name for name in SHIPPED if name not in SKIPPED]
    first, second = (
        [line for line in done.stdout.splitlines() if not any(line.startswith(f"| {name} ") for name in SKIPPED)]
        for done in (finished.first, finished.second)
    )  # who declines only when the model is there is asked again, which takes its seconds
    assert second == first


def test_fresh_runs_again_beside_the_old(finished: Finished) -> None:
    assert finished.fresh.returncode == 0, finished.fresh.stderr
    assert "already there" not in finished.fresh.stderr
    first, again = _first_and_fresh(finished)
    assert len(first) == len(SHIPPED) - len(SKIPPED)
    assert {name: run.folder.name for name, run in again.items()} == {
        name: f"{first[name].folder.name}-2" for name in ("base", "lora")
    }


def _first_and_fresh(finished: Finished) -> tuple[dict[str, Run], dict[str, Run]]:
    """The first run of every algorithm by its name, and the second where there is one."""
    first: dict[str, Run] = {}
    again: dict[str, Run] = {}
    for run in finished.good():
        name = run.result.recipe.algorithm
        (again if name in first else first)[name] = run
    return first, again


def test_same_recipe_and_seed_give_identical_replies(finished: Finished) -> None:
    first, again = _first_and_fresh(finished)
    assert again
    for name, new in again.items():
        assert first[name].result.recipe == new.result.recipe
        assert first[name].replies() == new.replies()  # the losses on the ordinary replies are among them
    assert first["lora"].replies()[0].ordinary_nll != first["base"].replies()[0].ordinary_nll


def test_another_seed_does_not_share_the_folder(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1, 1):
        recipe = Recipe(seed=seed)
        with staging(tmp_path) as folder:
            (folder / "recipe.toml").write_text(recipe.to_toml())
            folders.append(publish(folder, tmp_path, recipe))
    assert len(set(folders)) == 3
    assert [read_recipe(str(folder / "recipe.toml")).seed for folder in folders] == [0, 1, 1]


@pytest.mark.parametrize(("umask", "of_folder", "of_file"), [(0o022, 0o755, 0o644), (0o027, 0o750, 0o640)])
def test_a_published_run_is_for_whom_the_umask_says(tmp_path: Path, umask: int, of_folder: int, of_file: int) -> None:
    before = os.umask(umask)
    try:
        with staging(tmp_path) as folder:
            (folder / "model").mkdir(0o700)
            save_file({"weight": torch.zeros(1)}, folder / "model" / "adapter_model.safetensors")  # 0600, ever
            write_text(folder / "log.txt", "")
            run = publish(folder, tmp_path, Recipe())
    finally:
        os.umask(before)
    found = {path.relative_to(tmp_path): stat.S_IMODE(path.stat().st_mode) for path in [run, *run.rglob("*")]}
    name = Path(run.name)
    assert found == {
        name: of_folder,
        name / "model": of_folder,
        name / "model" / "adapter_model.safetensors": of_file,
        name / "log.txt": of_file,
    }


FATES: list[tuple[str, Status, str, str]] = [
    ("raises", "failed", "adapt", "KeyError: "),
    ("killed", "out-of-memory", "adapt", "SIGKILL"),
    ("crashes", "failed", "save", "SIGSEGV"),
    ("silent", "failed", "train", "report"),
    ("skips", "skipped", "start", "boats cannot be taught"),
    ("skip-raises", "failed", "start", "ZeroDivisionError: a ratio of nothing"),
    ("eats", "out-of-memory", "adapt", "1.00 GiB"),
    ("sleeps", "timed-out", "", "2 s"),
]


@pytest.mark.parametrize(("name", "status", "phase", "reason"), FATES, ids=[fate[0] for fate in FATES])
def test_run_that_goes_wrong_becomes_a_result(
    finished: Finished, name: str, status: Status, phase: str, reason: str
) -> None:
    run = finished.bad(name)
    assert run.result.status == status
    assert run.result.phase == phase or not phase
    assert run.result.phase
    assert run.result.reason is not None
    assert reason in run.result.reason
    assert "\n" not in run.result.reason
    done = {"eats": finished.greedy, "sleeps": finished.slow}.get(name, finished.faulty)
    assert any(line.startswith(f"| {name} ") and f"| {status} " in line for line in done.stdout.splitlines())
    assert f"{name}: {status}: {run.result.reason}" in done.stdout
    assert "Traceback" not in done.stderr
    expected = {"recipe.toml", "result.json", "log.txt", *(["metrics.jsonl"] if phase == "save" else [])}
    assert {path.name for path in run.folder.iterdir()} <= expected


def test_runs_after_one_that_went_wrong_still_run(finished: Finished) -> None:
    order = [line.split(":")[0] for line in finished.faulty.stderr.splitlines() if str(finished.bad_out) in line]
    assert order == ["base", *FAULTY]
    assert finished.bad("zeroed").result.status == "ok"
    assert finished.faulty.returncode == finished.slow.returncode == finished.greedy.returncode == 1
    assert not list(finished.bad_out.glob(".*"))


def test_log_holds_the_traceback_of_what_was_raised(finished: Finished) -> None:
    log = (finished.bad("raises").folder / "log.txt").read_text("utf-8")
    assert "Traceback" in log
    assert "in adapt" in log


def test_what_was_known_before_it_went_wrong_is_kept(finished: Finished) -> None:
    result = finished.bad("raises").result
    assert result.data is not None
    assert result.judge is not None
    assert result.environment is not None
    assert result.measures.total_parameters
    assert set(result.measures.phase_seconds) == {"data", "load", "adapt"}


def test_only_skipped_is_no_failure(settings: list[str], finished: Finished, tmp_path: Path) -> None:
    plugins = install(tmp_path / "site", "ftbench-faults", FAULTS)
    done = ftbench("run", *settings, "--out", finished.bad_out, "--algo", "skips", plugins=plugins)
    assert done.returncode == 0
    assert "| skipped" in done.stdout


def test_what_is_evaluated_is_what_was_saved(finished: Finished) -> None:
    # Zeroed weights find every next token equally likely, whatever the model in memory had learnt.
    run = finished.bad("zeroed")
    for item in run.replies():
        assert item.ordinary_nll is not None
        assert item.ordinary_tokens is not None
        assert item.ordinary_nll / item.ordinary_tokens == pytest.approx(math.log(259), abs=1e-3)
    assert run.result.measures.final_loss is not None
    assert run.result.measures.final_loss != pytest.approx(math.log(259), abs=1e-3)
    assert len({item.reply for item in run.replies()}) == 1
    base = finished.bad("base").replies()[0]
    assert base.ordinary_nll != pytest.approx(run.replies()[0].ordinary_nll, abs=1e-3)


def test_skipped_run_starts_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(tmp_path / "site", "ftbench-faults", FAULTS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr("subprocess.Popen", pytest.fail)
    run = launch(Recipe(algorithm="skips"), load_plugins(), tmp_path / "runs", None, print)
    assert run.result.status == "skipped"
    assert {path.name for path in run.folder.iterdir()} == {"recipe.toml", "result.json"}
