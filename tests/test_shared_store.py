"""Two benchmarks in one folder of runs at once, and clocks that are set back: nothing is lost, mixed or mistaken."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from ftbench.cli.common import read_finished
from ftbench.cli.running import Runner
from ftbench.execution.local import launch
from ftbench.execution.reuse import Inputs
from ftbench.execution.unfinished import forget, state_file
from ftbench.files import write_json
from ftbench.models.loading import load_model
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe, read_recipe
from ftbench.results.comparing import comparable
from ftbench.results.store import LAUNCH, RECIPE, RESULT, Run, find_run, oldest_first, publish, read_runs, staging
from ftbench.training.clock import Clock
from ftbench.training.keeping import Keeper
from ftbench.training.trainer import StepReport
from made_results import DATA, make_run, store
from strangers import environment
from tiny import draw_pairs, make_training
from working_here import quick_recipe, run

REGISTRY = load_plugins()
WEIGHTS = "model/model.safetensors"


@pytest.fixture
def recipe(tiny_llama: Path, pairs_file: Path) -> Recipe:
    return quick_recipe(tiny_llama, pairs_file)


# Two at once


def test_trainings_of_one_recipe_and_of_another_at_once_are_neither_lost_nor_mixed(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    recipes = [recipe, recipe, recipe.change(algorithm="lora", options={})]
    together = threading.Barrier(len(recipes))

    def make(asked: Recipe) -> Run:
        together.wait()
        return launch(asked, REGISTRY, tmp_path / "runs", None, lambda _: None, save_every=1e-9)

    with ThreadPoolExecutor(len(recipes)) as pool:
        made = list(pool.map(make, recipes))
    assert [run.result.status for run in made] == ["ok"] * 3
    assert len({run.folder for run in made}) == 3
    found, warnings = read_runs(tmp_path / "runs")
    assert not warnings
    assert sorted(run.folder for run in found) == sorted(run.folder for run in made)
    for asked, ended in zip(recipes, made, strict=True):
        assert ended.result.recipe == asked == read_recipe(str(ended.folder / RECIPE))
        assert len(ended.replies()) == 12
    one, other, last = made
    # One that comes to its training when the other's is over, and not yet published, goes on from what that left.
    assert one.result.measures.training_tokens == other.result.measures.training_tokens
    assert one.result.measures.resumed + other.result.measures.resumed <= 1
    assert last.result.measures.resumed == 0
    assert one.replies() == other.replies()
    assert (one.folder / WEIGHTS).read_bytes() == (other.folder / WEIGHTS).read_bytes()
    assert not list((tmp_path / "runs").glob(".*"))


def test_the_state_that_one_keeps_is_not_taken_by_the_other(tiny_llama: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    others: list[Keeper] = []
    algorithm = REGISTRY.make("lora", {})

    def train(keeper: Keeper, at: int, then: Callable[[], None]) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        model = algorithm.adapt(load_model(tiny_llama, torch.device("cpu")), [])
        count = 0

        def report(step: StepReport) -> None:
            nonlocal count
            count += 1
            if count == at:
                then()

        training = replace(make_training(model, draw_pairs(1), tokens=2500), report=report, keeper=keeper)
        algorithm.train(training)
        return {name: one.detach().clone() for name, one in model.named_parameters()}

    def another() -> None:
        assert state.exists()
        others.append(Keeper(state, "this", 0.0, Clock()))

    keeper = Keeper(state, "this", 0.0, Clock())
    expected = train(keeper, 4, another)
    mine = state.read_bytes()
    (other,) = others
    assert other.times == 0
    weights = train(other, 10**6, lambda: None)  # while the first still holds it
    assert other.times == 0
    assert state.read_bytes() == mine
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    keeper.close()
    third = Keeper(state, "this", 0.0, Clock())
    state.unlink()  # what was opened is what is taken up
    assert all(torch.equal(one, expected[name]) for name, one in train(third, 10**6, lambda: None).items())
    assert third.times == 1


def test_many_that_publish_one_recipe_at_once_have_a_number_each(tmp_path: Path) -> None:
    recipe, count = Recipe(), 16
    together = threading.Barrier(count)

    def make(number: int) -> Path:
        with staging(tmp_path) as folder:
            (folder / "whose").write_text(str(number))
            together.wait()
            return publish(folder, tmp_path, recipe)

    with ThreadPoolExecutor(count) as pool:
        folders = list(pool.map(make, range(count)))
    assert [(folder / "whose").read_text() for folder in folders] == [str(number) for number in range(count)]
    first = min(folders, key=lambda folder: len(folder.name))
    assert {folder.name for folder in folders} == {first.name} | {f"{first.name}-{n}" for n in range(2, count + 1)}


# A clock that is set back


def put(out: Path, name: str, started: int, algorithm: str = "lora", **facts: object) -> Run:
    """Publish a made run whose clock said `started`."""
    made = make_run(algorithm, started=started, **facts)  # type: ignore[arg-type]
    with staging(out) as folder:
        write_json(folder / RESULT, made.result.model_dump(mode="json"))
        (folder / "whose").write_text(name)
        return Run(publish(folder, out, made.result.recipe), made.result)


def whose(runs: list[Run]) -> list[str]:
    return [(run.folder / "whose").read_text() for run in runs]


def test_the_newest_of_a_recipe_is_the_one_that_was_published_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftbench.execution.reuse.changed_versions", lambda *_: [])
    out = tmp_path / "runs"
    put(out, "first", 40)
    put(out, "base", 20, "base")
    put(out, "second", 50)
    put(out, "set back", 10)
    put(out, "last", 12)
    runs, _ = read_runs(out)
    assert whose(runs) == ["first", "second", "base", "set back", "last"]
    found = Runner(REGISTRY, out, Inputs(DATA.digest, None), tuple(runs)).find(Recipe(algorithm="lora"))
    assert found is not None
    assert whose([found, find_run("lora", out)]) == ["last", "last"]
    shown = [run for group in comparable(read_finished([out])) for run in group]
    assert sorted(whose(shown)) == ["base", "last"]


def test_a_failure_of_the_future_does_not_stand_for_what_came_out_well_since(tmp_path: Path) -> None:
    put(tmp_path, "failed", 59, status="failed", reason="the clock was wrong", phase="train")
    put(tmp_path, "again", 1, status="failed", reason="another", phase="train")
    runs, _ = read_runs(tmp_path)
    assert whose([run for group in comparable(runs) for run in group]) == ["again"]


def test_a_number_is_not_given_again_to_a_newer_run(tmp_path: Path) -> None:
    folders = [put(tmp_path, str(number), 30 - number).folder for number in range(3)]
    for gone in folders[:2]:
        shutil.rmtree(gone)
    newest = put(tmp_path, "newest", 5)
    assert newest.folder.name == f"{folders[0].name}-4"
    assert whose(read_runs(tmp_path)[0]) == ["2", "newest"]


def test_of_one_launch_an_earlier_run_is_found_among_the_numbers(tmp_path: Path) -> None:
    def publish_of(launch: str) -> Path:
        with staging(tmp_path) as folder:
            (folder / LAUNCH).write_text(launch)
            return publish(folder, tmp_path, Recipe())

    folders = [publish_of(launch) for launch in ("a", "b", "c")]
    assert publish_of("b") == folders[1]
    assert len(list(tmp_path.iterdir())) == 3


def test_runs_that_were_renamed_or_come_from_several_folders_go_by_their_clock(tmp_path: Path) -> None:
    runs = [make_run("lora", started=started) for started in (3, 1, 2)]
    named = [replace(run, folder=tmp_path / name) for run, name in zip(runs, ("mine", "b/mine", "c-2"), strict=True)]
    assert [run.result.started[17:19] for run in oldest_first(named)] == ["01", "02", "03"]
    name = store(runs[0], tmp_path).name
    apart = [replace(run, folder=tmp_path / str(index) / name) for index, run in enumerate(runs)]
    assert [run.result.started[17:19] for run in oldest_first(apart)] == ["01", "02", "03"]


def test_a_state_of_the_future_is_no_old_one(tmp_path: Path) -> None:
    asked = [Recipe(algorithm="lora", seed=seed) for seed in range(3)]
    mine, ahead, old = (state_file(recipe, tmp_path) for recipe in asked)
    for path, days in ((mine, 0), (ahead, 400), (old, -31)):
        path.write_bytes(b"kept")
        seconds = time.time() + days * 86400
        os.utime(path, (seconds, seconds))
    forget(mine)
    assert [path.name for path in tmp_path.iterdir()] == [ahead.name]


def test_a_run_while_the_clock_is_set_back_counts_no_second_below_zero(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = [0.0]
    real = time.time

    class Back:
        @staticmethod
        def now(_: object) -> datetime:
            return datetime.fromtimestamp(time.time(), UTC)

    def fault(phase: str, _: Path) -> None:
        back[0] += 3600  # an hour at every phase and every step

    monkeypatch.setattr(time, "time", lambda: real() - back[0])
    for module in ("local", "worker"):
        monkeypatch.setattr(f"ftbench.execution.{module}.datetime", Back)
    out = tmp_path / "runs"
    runs = [run(recipe, out, fault, save_every=1e-9) for _ in range(2)]
    assert runs[1].result.started < runs[0].result.started
    assert datetime.fromisoformat(runs[0].result.started) < datetime.now(UTC) + timedelta(hours=1)
    assert [one.folder for one in read_runs(out)[0]] == [one.folder for one in runs]
    for one in runs:
        measures = one.result.measures
        assert one.result.status == "ok"
        assert 0 < (measures.training_seconds or 0) <= (measures.run_seconds or 0) < 600
        assert all(0 <= seconds < 600 for seconds in measures.phase_seconds.values())
        seconds = [row["seconds"] for row in one.steps()]
        assert seconds == sorted(seconds)
        assert seconds[0] > 0
    assert not list(out.glob(".*"))
