"""A node of a Ray cluster is killed while runs are on it: do all results arrive, and each once?

python benchmarks/cluster.py [--runs 24]              minutes: each run is a process of its own, for seconds

Two Ray nodes with a core each are started on this machine, on the loopback interface. `ftbench run --launcher ray`
makes short runs of a tiny random model on them. When half of the runs are there, the second node is killed (SIGKILL):
its raylet and Ray's workers, not ftbench's own, which must end by themselves. A line is added to
benchmarks/cluster/cpu.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
WORKER = "ftbench.execution.worker"


def main() -> None:
    """Make the runs, kill the node, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=24)
    count = parser.parse_args().runs
    path = HERE / "cluster" / "cpu.jsonl"
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        row = lose_a_node(Path(place), _prepare(Path(place)), count, count // 2)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))
    if row["ok"] != count or row["twice"] or row["litter"] or row["left"]:
        sys.exit("results were lost, came twice, or something stayed behind")


def _prepare(place: Path) -> list[str]:
    """Write a tiny model and its data; return what every run is asked for."""
    from ftbench.checking.subject import boat_pairs
    from ftbench.checking.tiny import make_llama

    make_llama(place / "model")
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in boat_pairs()))
    return ["--model", str(place / "model"), "--data", str(place / "pairs.jsonl"), "--topic", "boats"]


def lose_a_node(place: Path, settings: list[str], count: int, there: int) -> dict[str, Any]:
    """Make `count` runs on two nodes, the second of which is lost while it makes one and `there` of them are there.

    Args:
        place: a folder to write into.
        settings: model, data and topic, as `ftbench run` takes them.
        count: of runs, the untouched model's among them.
        there: of them, before the node is lost. Behind it must be runs enough that the node gets one: on a busy machine
            the first node makes several before the second has started its first process.

    Returns:
        How many runs there are, of how many recipes, and what else was seen.
    """
    from ftbench.results.store import read_runs

    out, begin = place / "runs", time.monotonic()
    short = ["--tokens", "400", "--set", "max_new_tokens=4", "--set", "evaluation_prompts=4"]
    short += ["--set", "attack_prompts=0", "--set", "checkpoints=0", "--algo", "lora", "--seeds", str(count - 1)]
    with two_nodes() as (address, raylet):
        line = [
            sys.executable,
            "-m",
            "ftbench",
            "run",
            *settings,
            *short,
            "--launcher",
            "ray",
            "--ray-address",
            address,
        ]
        started = time.monotonic()
        with (place / "log").open("wb") as log:
            launcher = subprocess.Popen([*line, "--out", str(out)], stdout=log, stderr=log, cwd=place)
        try:
            workers = _when_on_node(raylet, out, there, launcher)
            killed = time.monotonic()
            there_when_killed = _finished(out)
            _kill_node(raylet)
            psutil.wait_procs(workers, timeout=60)
            orphans = [worker.pid for worker in workers if worker.is_running()]
            gone = time.monotonic()
            code = launcher.wait(900)
            ended = time.monotonic()
        finally:
            launcher.kill()
            launcher.wait()
    runs, broken = read_runs(out)
    digests = Counter(run.result.recipe_digest for run in runs)
    return {
        "runs": count,
        "code": code,
        "ok": sum(run.result.status == "ok" for run in runs),
        "recipes": len(digests),
        "twice": sum(number - 1 for number in digests.values()),
        "broken": broken,
        "there_when_killed": there_when_killed,
        "on_the_node": len(workers),
        "workers_gone_after_s": round(gone - killed, 1),
        "left": orphans,
        "litter": sorted(path.name for path in out.glob(".*")),
        "start_s": round(started - begin, 1),
        "seconds": round(ended - started, 1),
        "said": [line for line in (place / "log").read_text().splitlines() if "Error" in line or "failed" in line],
    }


@contextmanager
def two_nodes() -> Iterator[tuple[str, psutil.Process]]:
    """Start two nodes of a core each; give the cluster's address, and the raylet of the second."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    common: dict[str, Any] = {"num_cpus": 1, "node_ip_address": LOOPBACK, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=common)
    try:
        other = cluster.add_node(**common)
        yield cluster.address, psutil.Process(other.all_processes["raylet"][0].process.pid)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def _when_on_node(
    raylet: psutil.Process, out: Path, finished: int, launcher: "subprocess.Popen[bytes]"
) -> list[psutil.Process]:
    """Wait until so many runs are there and one is on the node; return the node's workers of ftbench."""
    while launcher.poll() is None:
        if _finished(out) >= finished:
            workers = [process for process in raylet.children(recursive=True) if _is_worker(process)]
            if workers:
                return workers
        time.sleep(0.1)
    raise AssertionError("all runs ended before the node could be killed")


def _finished(out: Path) -> int:
    return len(list(out.glob("[!.]*/result.json")))


def _is_worker(process: psutil.Process) -> bool:
    try:
        return WORKER in process.cmdline()
    except psutil.Error:
        return False


def _kill_node(raylet: psutil.Process) -> None:
    """Kill a raylet and what it started, but for ftbench's workers."""
    for process in [raylet, *raylet.children(recursive=True)]:
        if not _is_worker(process):
            process.kill()


if __name__ == "__main__":
    main()
