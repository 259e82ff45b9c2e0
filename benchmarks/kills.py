"""Runs that are killed (SIGKILL) at random moments: does the store hold the whole result or none, and does it go on?

python benchmarks/kills.py [--times 50]                   about an hour on two cores that do other things, too

Each time a run of a tiny random model is started, and the launcher, the worker or both are killed: at a moment between
its start and the time that an unbroken run takes, or between its first step and as long after as training takes, or
between the end of that and as long after as saving, loading again and evaluation take; for most of a small run is
Python reading its libraries. Then the store is read, the run is started again, and its replies, outcomes and weights
are held against those of an unbroken run, bit by bit. What runs share is made anew each time, in a cache of their own.
A line a time is added to benchmarks/kills/cpu.jsonl; what is there counts, and the rest is made. It exits with 1 where
something was lost, broken or otherwise than unbroken, or a training whose state was kept did not go on from it.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
SEED = 20_261_123


def main() -> None:
    """Kill as often as is asked for, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50)
    times = parser.parse_args().times
    path = HERE / "kills" / "cpu.jsonl"
    path.parent.mkdir(exist_ok=True)
    draw = random.Random(SEED)
    there = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with tempfile.TemporaryDirectory() as place:
        settings = _prepare(Path(place))
        os.environ["FTBENCH_CACHE"] = str(Path(place) / "cache")
        whole, out = Path(place) / "whole", Path(place) / "out"
        for each in (whole, out):
            _run([*settings, "--algo", "base", "--out", str(each)])
        begin = time.monotonic()
        _run([*settings, *LORA, "--out", str(whole)])
        longest = {"start": time.monotonic() - begin, **_seconds_of_phases(whole)}
        for number in range(times):
            since, share, whom = draw.choice(SINCE), draw.uniform(0, 1), draw.choice(KILLED)
            if number < len(there):
                continue
            moment = Moment(since, share * longest[since], whom)
            there.append(_once([*settings, "--out", str(out)], moment, out, whole))
            with path.open("a") as file:
                file.write(json.dumps(there[-1]) + "\n")
            print(f"{number + 1:3} {there[-1]}", flush=True)
    bad = [row for row in there if row["broken"] or not row["same"] or (row["state"] and not row["resumed"])]
    print(
        f"{len(there)} kills, {sum(row['resumed'] > 0 for row in there)} went on midway, {len(bad)} not as they should"
    )
    sys.exit(1 if bad else 0)


KILLED = ("launcher", "worker", "both")
SINCE = ("start", "training", "trained")
LORA = ["--algo", "lora", "--save-every", "0.05"]
STATE, TRAINED = ".training-*.safetensors", ".unfinished-*/metrics.jsonl"


@dataclass(frozen=True)
class Moment:
    """When to kill whom: so many seconds after the start, after the first step, or after the last."""

    since: str
    after: float
    whom: str

    def wait(self, launcher: "subprocess.Popen[bytes]", out: Path) -> None:
        """Wait for it; a launcher that ends before is not waited for."""
        files = {"training": STATE, "trained": TRAINED}.get(self.since)
        while files and launcher.poll() is None and not list(out.glob(files)):
            time.sleep(0.002)
        time.sleep(self.after)
        while self.whom == "worker" and launcher.poll() is None and not _workers(launcher):
            time.sleep(0.002)


def _prepare(place: Path) -> list[str]:
    """Write a tiny model and its data; return what every run is asked for."""
    from ftbench.checking.subject import boat_pairs
    from ftbench.checking.tiny import make_llama

    make_llama(place / "model")
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in boat_pairs()))
    settings = ["--model", str(place / "model"), "--data", str(place / "pairs.jsonl"), "--topic", "boats"]
    return [*settings, "--tokens", "20000", "--set", "max_new_tokens=8", "--set", "evaluation_prompts=6"]


def _run(arguments: list[str]) -> None:
    subprocess.run(_command(arguments), check=True, capture_output=True, env=_environment())


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "ftbench", "run", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _seconds_of_phases(whole: Path) -> dict[str, float]:
    """What the unbroken run took for training, and from there on."""
    seconds = _trained(_look(whole)[0])[0].result.measures.phase_seconds
    after = sum(seconds.get(phase, 0) for phase in ("save", "reload", "evaluate"))
    return {"training": float(seconds["train"]), "trained": float(after)}


def _once(settings: list[str], moment: Moment, out: Path, whole: Path) -> dict[str, Any]:
    """Start a run, kill it, look at the store, start it again."""
    arguments = [*settings, *LORA]
    made = Path(os.environ["FTBENCH_CACHE"]) / "made"
    shutil.rmtree(made)
    launcher = subprocess.Popen(
        _command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment()
    )
    moment.wait(launcher, out)
    there = _written(out)
    _kill(launcher, moment.whom)
    launcher.wait()
    runs, broken = _look(out)
    kept = bool(list(out.glob(STATE)))
    _run(arguments)
    after_runs, after_broken = _look(out)
    ok = [run for run in _trained(after_runs) if run.result.status == "ok"]
    expected = _trained(_look(whole)[0])[0]
    same = ok[-1].replies() == expected.replies() and ok[-1].result.outcomes == expected.result.outcomes
    row = {
        "since": moment.since,
        "after_s": round(moment.after, 2),
        "killed": moment.whom,
        "there": there,
        "left": [run.result.status for run in _trained(runs)],
        "broken": broken + after_broken,
        "state": kept,
        "resumed": ok[-1].result.measures.resumed,
        "same": same and _weights(ok[-1]) == _weights(expected),
        "litter": sorted(each.name for folder in (out, made) for each in folder.glob(".*")),
    }
    for run in _trained(after_runs):
        shutil.rmtree(run.folder)
    return row


def _trained(runs: list[Any]) -> list[Any]:
    return [run for run in runs if run.result.recipe.algorithm == "lora"]


def _written(out: Path) -> list[str]:
    """Say what of a run is there at the moment: how far it is."""
    unfinished = next(out.glob(".unfinished-*"), None)
    return sorted(each.name for each in unfinished.iterdir()) if unfinished else []


def _weights(run: Any) -> str:
    return hashlib.sha256((run.folder / "model" / "adapter_model.safetensors").read_bytes()).hexdigest()


def _workers(launcher: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    try:
        return psutil.Process(launcher.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(launcher: "subprocess.Popen[bytes]", whom: str) -> None:
    workers = _workers(launcher)
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(launcher.pid)
        for one in {"launcher": [process], "worker": workers, "both": [process, *workers]}[whom]:
            one.send_signal(signal.SIGKILL)


def _look(out: Path) -> tuple[list[Any], list[str]]:
    """Read the store, and every file of each run; return the runs and what is wrong with them."""
    from ftbench.errors import FtbenchError
    from ftbench.results.store import read_runs

    runs, broken = read_runs(out)
    for run in runs:
        try:
            replies, steps = run.replies() if run.result.status == "ok" else [], run.steps()
        except FtbenchError as error:
            broken.append(str(error))
            continue
        trained = run.result.status == "ok" and run.result.recipe.algorithm != "base"
        if trained and not (replies and steps and (run.folder / "model" / "adapter_model.safetensors").is_file()):
            broken.append(f"{run.folder.name} lacks a part")
    return runs, broken


if __name__ == "__main__":
    main()
