"""Runs on a Ray cluster: one whose node dies is made elsewhere, once; what a node lacks is said."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from ftbench.cli.run import command as run
from ftbench.errors import FtbenchError
from ftbench.execution import cluster
from ftbench.execution.attempt import Probe, Ticket, attempt, remove_unfinished
from ftbench.execution.cluster import ask_for
from ftbench.execution.launcher import Order
from ftbench.execution.launchers import make_launcher
from ftbench.execution.local import publish_failure
from ftbench.execution.machine import LOADED
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.store import LAUNCH, Run, of_launch, publish, read_runs, staging
from made_module import load
from made_results import make_run as made_run
from one_line import one_line
from strangers import FAULTS, install

REGISTRY = load_plugins()
ROOT = Path(__file__).parents[1]
CLUSTER: ModuleType = load(ROOT / "benchmarks" / "cluster.py")


def test_runs_of_a_lost_node_are_made_elsewhere_and_arrive_once(
    tiny_llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    settings = ["--model", str(tiny_llama), "--data", str(pairs_file), "--topic", "boats"]
    found = CLUSTER.lose_a_node(tmp_path, settings, 4)
    said = (tmp_path / "log").read_text()
    assert found["code"] == 0, said
    assert (found["ok"], found["recipes"], found["twice"], found["broken"]) == (4, 4, 0, []), said
    assert found["on_the_node"] == 1
    assert (found["left"], found["litter"]) == ([], [])
    runs, _ = read_runs(tmp_path / "runs")
    assert len({of_launch(run.folder) for run in runs}) == 4
    assert "lora, seed 2: train" in said  # progress came from the nodes


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
    other = publish_failure(recipe, REGISTRY, tmp_path, None, "of an earlier launch", "earlier")
    with staging(tmp_path) as one, staging(tmp_path) as two:
        for folder in (one, two):
            (folder / LAUNCH).write_text("this\n")
            (folder / "result.json").write_text((other.folder / "result.json").read_text())
        published = publish(one, tmp_path, recipe)
        assert publish(two, tmp_path, recipe) == published == tmp_path / f"{other.folder.name}-2"
    assert len(read_runs(tmp_path)[0]) == 2
    lost = publish_failure(recipe, REGISTRY, tmp_path, None, "lost, but it was published before", "this")
    assert lost.folder == published
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


CPU = {"CPU": 8.0, "memory": 64e9}
GPU = {"CPU": 32.0, "GPU": 4.0, "memory": 64e9}


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
