"""Runs on a Ray cluster: one whose node dies is made elsewhere, once; what a node lacks is said."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest

from ftbench.cli.run import command as run
from ftbench.errors import FtbenchError
from ftbench.execution import cluster
from ftbench.execution.attempt import Probe, Ticket, attempt, remove_unfinished
from ftbench.execution.cluster import RayLauncher
from ftbench.execution.launcher import Order
from ftbench.execution.launchers import make_launcher
from ftbench.execution.local import Place, launch, publish_failure
from ftbench.execution.machine import LOADED
from ftbench.execution.room import PATIENCE, Cluster, ask_for
from ftbench.execution.unfinished import state_file
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.mirror import open_store
from ftbench.results.store import LAUNCH, Run, of_launch, publish, read_runs, staging
from made_module import load
from made_results import make_run as made_run
from one_line import one_line
from strangers import FAULTS, ftbench, install
from working_here import Fault, WorkingHere

REGISTRY = load_plugins()
ROOT = Path(__file__).parents[1]
CPU = {"CPU": 8.0, "memory": 64e9}
GPU = {"CPU": 32.0, "GPU": 4.0, "memory": 64e9}
CLUSTER: ModuleType = load(ROOT / "benchmarks" / "cluster.py")


def test_runs_of_a_lost_node_are_made_elsewhere_and_arrive_once(
    tiny_llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    settings = ["--model", str(tiny_llama), "--data", str(pairs_file), "--topic", "boats"]
    found = CLUSTER.lose_a_node(tmp_path, settings, 6, 1)
    said = (tmp_path / "log").read_text()
    assert found["code"] == 0, said
    assert (found["ok"], found["recipes"], found["twice"], found["broken"]) == (6, 6, 0, []), said
    assert found["on_the_node"] == 1
    assert (found["left"], found["litter"]) == ([], [])
    runs, _ = read_runs(tmp_path / "runs")
    assert len({of_launch(run.folder) for run in runs}) == 6
    assert "lora, seed 2: train" in said  # progress came from the nodes


def test_a_ray_that_is_started_here_sends_its_runs_to_a_url(
    url: str, tiny_llama: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = ["--model", tiny_llama, "--data", pairs_file, "--topic", "boats", "--tokens", 400, "--algo", "lora"]
    settings += ["--set", "max_new_tokens=4", "--set", "attack_prompts=0", "--set", "checkpoints=0"]
    done = ftbench("run", *map(str, settings), "--launcher", "ray", "--out", url)
    assert done.returncode == 0, done.stderr
    runs, warnings = read_runs(open_store(url))
    assert (sorted(run.result.recipe.algorithm for run in runs), warnings) == (["base", "lora"], [])
    assert {run.result.status for run in runs} == {"ok"}
    assert all(of_launch(run.folder) for run in runs)  # they were tasks of Ray
    assert "lora: train" in done.stderr
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or [])]


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:1", ("no Ray cluster at 127.0.0.1:1", "refused", "ray start --head")),
        ("[::1]:1", ("no Ray cluster at [::1]:1", "ray start --head")),
        ("127.0.0.1:123456", ("no Ray cluster at 127.0.0.1:123456",)),
        ("auto", ("no Ray cluster at auto",)),
        ("nonsense", ("no Ray cluster at nonsense",)),
    ],
)
def test_where_no_cluster_is_it_is_one_line_at_once(address: str, parts: tuple[str, ...]) -> None:
    pytest.importorskip("ray")
    begin = time.monotonic()
    with one_line(*parts), make_launcher("ray", address=address):
        pass
    assert time.monotonic() - begin < 30


# One launch leaves one run


def ticket(out: Path, ident: str = "this", **changes: object) -> Ticket:
    order = Order(Recipe(**{"algorithm": "skips", **changes}), load_plugins(), out)  # type: ignore[arg-type]
    probe = Probe("probe")
    probe.write(out)
    return Ticket.write(order, ident, probe.name, 1)


@pytest.fixture(autouse=True)
def _faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", "ftbench-faults", FAULTS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def test_a_second_try_finds_what_the_first_has_published(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    asked = ticket(out)
    first = attempt(asked, print)
    assert attempt(Ticket.model_validate_json(asked.model_dump_json()), print) == first
    other = attempt(ticket(out, "another"), print)
    assert other == f"{first}-2"
    assert attempt(asked, print) == first
    assert [run.result.status for run in read_runs(out)[0]] == ["skipped", "skipped"]


def test_two_tries_that_end_at_the_same_time_leave_one_run(tmp_path: Path) -> None:
    recipe = Recipe(algorithm="base")
    other = publish_failure(recipe, REGISTRY, tmp_path, None, "failed", "of an earlier launch", "earlier")
    with staging(tmp_path) as one, staging(tmp_path) as two:
        for folder in (one, two):
            (folder / LAUNCH).write_text("this\n")
            (folder / "result.json").write_text((other.folder / "result.json").read_text())
        published = publish(one, tmp_path, recipe)
        assert publish(two, tmp_path, recipe) == published == tmp_path / f"{other.folder.name}-2"
    assert len(read_runs(tmp_path)[0]) == 2
    lost = publish_failure(recipe, REGISTRY, tmp_path, None, "failed", "lost, but it was published before", "this")
    assert lost.folder == published
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("moment", ["train", "save", "evaluate"])
def test_a_try_that_was_taken_for_lost_and_goes_on_publishes_nothing(
    moment: str, recipe: Recipe, tmp_path: Path
) -> None:
    again: list[Run] = []

    def tried(fault: Fault) -> Run:
        place = Place(workers=WorkingHere(fault), ident="this")
        return launch(recipe, REGISTRY, tmp_path, None, lambda _: None, place=place)

    def lose(phase: str, _: Path) -> None:
        if phase == moment:
            remove_unfinished(tmp_path, ["this"])
            again.append(tried(lambda *_: None))

    with one_line("full was run, was taken away", "taken for lost"):
        tried(lose)
    (found,) = read_runs(tmp_path)[0]
    assert (found.folder, found.result.status) == (again[0].folder, "ok")
    assert len(found.replies()) == 12
    assert not list(tmp_path.glob(".*"))


def test_what_a_lost_try_left_half_done_goes_and_nothing_else(tmp_path: Path) -> None:
    with staging(tmp_path) as mine, staging(tmp_path) as other, staging(tmp_path) as plain:
        (mine / LAUNCH).write_text("mine")
        (other / LAUNCH).write_text("other")
        remove_unfinished(tmp_path, ["mine"])
        assert not mine.exists()
        assert other.exists()
        assert plain.exists()


def test_what_a_node_has_published_is_waited_for_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    clock = iter(range(100))
    time = SimpleNamespace(sleep=slept.append, monotonic=lambda: 10.0 * next(clock))
    monkeypatch.setattr("ftbench.execution.cluster.time", time)
    run = made_run("lora")
    found: Iterator[FtbenchError | Run] = iter([FtbenchError("not there"), FtbenchError("not there"), run])

    def read() -> Run:
        one = next(found)
        if isinstance(one, FtbenchError):
            raise one
        return one

    assert cluster._patiently(read) is run
    assert len(slept) == 2

    def never() -> Run:
        raise FtbenchError("it is gone")

    with one_line("it is gone"):
        cluster._patiently(never)
    assert len(slept) < 12


# What comes to no run


class FakeRay:
    """A cluster whose nodes are written down, and whose tasks never end but by `raised`; each wait takes a minute."""

    def __init__(self, nodes: list[dict[str, float]], raised: Exception | None = None) -> None:
        self.there, self.raised = nodes, raised
        self.seconds, self.looks, self.was_shut = 0.0, 0, False
        self.cancelled: list[object] = []
        self.begun: list[dict[str, object]] = []
        self.exceptions = pytest.importorskip("ray").exceptions

    def nodes(self) -> list[dict[str, object]]:
        self.looks += 1
        return [{"Alive": True, "Resources": node} for node in self.there] + [{"Alive": False, "Resources": GPU}]

    def remote(self, _: object) -> "FakeRay":
        return self

    def options(self, **asked: object) -> SimpleNamespace:
        self.begun.append(asked)
        return SimpleNamespace(remote=lambda *_: "task")

    def wait(self, tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        if self.raised:
            return tasks, []
        assert timeout < PATIENCE
        self.seconds += 60
        return [], tasks

    def get(self, _: str) -> str:
        assert self.raised is not None
        raise self.raised

    def cancel(self, task: str, force: bool) -> None:
        assert force
        self.cancelled.append(task)

    def shutdown(self) -> None:
        self.was_shut = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    ray = FakeRay([CPU])
    monkeypatch.setattr("ftbench.execution.room.time", SimpleNamespace(monotonic=lambda: ray.seconds))
    return ray


def launch_on(ray: FakeRay, out: Path) -> Run:
    launcher = RayLauncher()
    launcher._ray, launcher._cluster = ray, Cluster(ray)
    return launcher.launch(Order(Recipe(algorithm="base"), REGISTRY, out), print)


def test_a_run_whose_only_node_dies_is_waited_for_and_not_for_ever(fake: FakeRay, tmp_path: Path) -> None:
    real = fake.wait

    def wait(tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        small: list[dict[str, float]] = [{"CPU": 4.0, "memory": 2.0**31}] * 2
        fake.there = [] if fake.seconds < 120 else [CPU] if fake.seconds < 180 else small
        return real(tasks, timeout)

    fake.wait = wait  # type: ignore[method-assign]
    failed = launch_on(fake, tmp_path)
    said = failed.result.reason or ""
    assert failed.result.status == "failed"
    assert "\n" not in said
    for part in ("no node", "for 300 s", "asks for (CPU 8)", "there is 2 x (CPU 4, memory 2.00 GiB)", "run it again"):
        assert part in said
    assert fake.seconds == 180 + PATIENCE  # counted from when the node was seen last
    assert fake.cancelled == ["task"]
    assert [run.folder for run in read_runs(tmp_path)[0]] == [failed.folder]
    assert not list(tmp_path.glob(".unfinished*"))


def test_a_run_that_no_node_can_take_says_what_it_asks_for_and_what_there_is(fake: FakeRay, tmp_path: Path) -> None:
    fake.there = []
    said = launch_on(fake, tmp_path).result.reason or ""
    assert "asks for (CPU 1), and there is no node" in said
    assert not fake.begun


def test_however_many_wait_the_cluster_is_looked_at_once_in_a_while(fake: FakeRay) -> None:
    cluster = Cluster(fake)
    for _ in range(100):
        assert cluster.nodes() == [CPU]
    assert fake.looks == 1


def test_a_run_that_ray_ends_for_its_memory_says_so(fake: FakeRay, tmp_path: Path) -> None:
    page = "1 worker(s) were killed due to the node\nrunning low on memory.\nOOM kill reason: a page of figures"
    fake.raised = fake.exceptions.OutOfMemoryError(page)
    found = launch_on(fake, tmp_path).result
    assert found.status == "out-of-memory"
    said = found.reason or ""
    assert "memory ran out on its node" in said
    assert said.endswith("due to the node running low on memory.")
    assert "lost" not in said


def test_what_is_run_afresh_begins_anew_once_and_not_at_each_try(
    fake: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher, recipe = RayLauncher(), Recipe(algorithm="skips")
    launcher._ray, launcher._cluster = fake, Cluster(fake)
    state, tries = state_file(recipe, tmp_path), list[tuple[bool, bool]]()
    state.write_text("of an earlier launch")

    def train(*_: object, fresh: bool, **__: object) -> Run:
        tries.append((fresh, state.exists()))
        state.write_text("of this launch")
        raise FtbenchError("the node is lost")

    def ask(ticket: Ticket, *_: object) -> str:
        with suppress(FtbenchError):
            attempt(ticket, print)
        return attempt(ticket, print)

    monkeypatch.setattr("ftbench.execution.attempt.launch", train)
    monkeypatch.setattr(launcher, "_ask", ask)
    launcher.launch(Order(recipe, load_plugins(), tmp_path, fresh=True), print)
    assert tries == [(False, False), (False, True)]


def test_ray_is_let_go_of_though_the_listener_cannot_be_told(fake: FakeRay) -> None:
    def gone(**_: object) -> None:
        raise RuntimeError("the actor is dead")

    launcher = RayLauncher()
    launcher._ray, launcher._post = fake, SimpleNamespace(put=SimpleNamespace(options=gone))
    with pytest.raises(RuntimeError, match="the actor is dead"):
        launcher.__exit__(None, None, None)
    assert fake.was_shut


# What a node must have


def test_a_node_that_is_not_as_the_first_says_what_it_lacks(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    data = tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    asked = ticket(out, data="pairs.jsonl")  # the test's own folder is the current one
    assert asked.files == (data,)
    for changes, parts in (
        ({"probe": ".shared-other"}, ("does not share", str(out))),
        ({"code": "0"}, ("another ftbench",)),
        ({"plugin_version": "2.0"}, ("no plugin ftbench-faults 2.0", "there: 1.0")),
        ({"files": (tmp_path / "mine.json",)}, ("mine.json", "where all nodes see it")),
    ):
        with one_line(*parts):
            attempt(asked.model_copy(update=changes), print)
    assert not read_runs(out)[0]


@pytest.mark.parametrize(
    ("values", "jobs", "nodes", "asked"),
    [
        ({}, None, [CPU, {"CPU": 4.0}], {"num_cpus": 4}),  # the same share on all nodes
        ({}, 2, [CPU], {"num_cpus": 4}),
        ({"memory_budget": 2**30}, None, [CPU, {"CPU": 0.0}], {"num_cpus": 8, "memory": 2**30 + LOADED}),
        ({"memory_budget": 2**30}, None, [GPU, CPU], {"num_cpus": 8, "num_gpus": 1}),
        ({"devices": 4}, None, [GPU, {"CPU": 8.0, "GPU": 1.0}], {"num_cpus": 32, "num_gpus": 4}),
        ({}, 2, [GPU], {"num_cpus": 16, "num_gpus": 1}),
        ({"device": "cpu"}, None, [GPU], {"num_cpus": 32}),
    ],
)
def test_a_run_asks_for_its_cards_its_share_of_cores_and_its_memory(
    values: dict[str, object],
    jobs: int | None,
    nodes: list[dict[str, float]],
    asked: dict[str, int],
    tmp_path: Path,
) -> None:
    order = Order(Recipe(**values), REGISTRY, tmp_path)  # type: ignore[arg-type]
    assert ask_for(order, nodes, jobs) == asked


def test_without_ray_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with one_line("Ray", 'pip install "ftbench[ray]"'), make_launcher("ray"):
        pass


# Slurm


def test_the_array_job_of_the_documentation_asks_for_base_first_and_then_for_each_algorithm(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "machines.md").read_text("utf-8")
    array, submit = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "array.sh").write_text(array)
    (tmp_path / "submit.sh").write_text(submit)
    for name, body in (("ftbench", 'echo "$@" >> asked'), ("sbatch", SBATCH)):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-eu", "submit.sh"], check=True, cwd=tmp_path, env={**os.environ, "PATH": path})
    *runs, table = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[2] for line in runs] == ["base", "lora", "dpo", "orpo"]
    assert len({line.split("--out ")[1] for line in [*runs, table]}) == 1
    for line in runs:
        run.make_context("run", line.split()[1:])


SBATCH = r"""
if [ "$1" = --parsable ]; then
  bash -c "${@: -1}"
  echo 42
else
  [ "$1" = --dependency=afterok:42 ]
  last=$(grep -oP '(?<=--array=0-)\d+' "$2")
  for index in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$index bash -eu "$2"; done
fi
"""
