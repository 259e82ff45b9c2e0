"""A training that is killed goes on from what was kept of it, to the same end."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

import ftbench as ftbench_api
from ftbench.execution.unfinished import forget, state_file
from ftbench.memory.fit import Reduction
from ftbench.models.loading import load_model
from ftbench.models.precision import Precision
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.store import Run, read_runs
from ftbench.training.clock import Clock
from ftbench.training.keeping import Keeper
from ftbench.training.logprobs import CompletionLogProbs
from ftbench.training.statefile import Told
from ftbench.training.trainer import StepReport
from strangers import command_line, environment, ftbench
from tiny import draw_pairs, make_training

REGISTRY = load_plugins()
CPU = torch.device("cpu")


class KilledError(Exception):
    """Stands for what ends a process."""


class InTurn(ftbench_api.Algorithm):
    """Trains one layer, and then another."""

    name = "in-turn"

    def train(self, training: ftbench_api.Training) -> None:
        for layer, part in enumerate(training.split(0.4)):
            for name, parameter in training.model.named_parameters():
                parameter.requires_grad_(f"layers.{layer}." in name)
            replace(part, stage=f"layer {layer}").run(CompletionLogProbs.nll)


def make(name: str, options: dict[str, Any]) -> Any:
    if name == InTurn.name:
        return InTurn(InTurn.Config())
    return REGISTRY.make(*((name, options) if ":" not in name else REGISTRY.resolve(name)))


def train(
    folder: Path, name: str, options: dict[str, Any], state: Path | None, stop: int, precision: Precision = "float32"
) -> tuple[dict[str, Tensor], list[Told], int]:
    """Train until `stop` steps were reported here; return the weights, all reports, and how often it was taken up."""
    torch.manual_seed(3)
    algorithm = make(name, options)
    examples = draw_pairs(1)
    texts = [example.chosen.ids for example in draw_pairs(2, 40)]
    model = algorithm.adapt(load_model(folder, CPU, precision), texts)
    rows: list[Told] = []
    here = 0

    def report(step: StepReport) -> None:
        nonlocal here
        here += 1
        rows.append({"stage": step.stage, "loss": step.loss, "norm": step.grad_norm, "rate": step.learning_rate})
        if here > stop:
            raise KilledError

    def hear(told: Told) -> None:
        rows[:] = told["rows"]

    clock = Clock()
    keeper = Keeper(state, "this", 0.0, clock, lambda: {"rows": rows}, hear)
    training = replace(make_training(model, examples, tokens=2400), report=report, keeper=keeper, clock=clock)
    try:
        algorithm.train(training)
    finally:
        keeper.close()
    return {name: one.detach().clone() for name, one in model.named_parameters()}, rows, keeper.times


@pytest.mark.parametrize(
    ("name", "options", "precision"),
    [
        ("full", {}, "float32"),
        ("full", {}, "bf16"),
        ("lora", {"dropout": 0.1}, "bf16"),
        ("dpo", {}, "bf16"),
        ("dpo", {"adapter": "none"}, "float32"),
        ("simpo", {}, "float32"),
        ("orpo", {}, "bf16"),
        ("peft:dora", {}, "float32"),
        ("peft:adalora", {}, "float32"),
        ("mla", {"heal_tokens": 0}, "float32"),
        ("in-turn", {}, "float32"),
    ],
)
def test_a_training_that_was_killed_ends_where_an_unbroken_one_does(
    name: str, options: dict[str, Any], precision: Precision, tiny_llama: Path, tmp_path: Path
) -> None:
    weights, rows, _ = train(tiny_llama, name, options, None, 10**6, precision)
    state, stops = tmp_path / "state", [1, len(rows) // 3, 0, 2]
    for stop in stops:
        with pytest.raises(KilledError):
            train(tiny_llama, name, options, state, stop, precision)
    again, told, times = train(tiny_llama, name, options, state, 10**6, precision)
    assert told == rows
    assert again.keys() == weights.keys()
    assert [key for key in weights if not torch.equal(weights[key], again[key])] == []
    # One was killed before it could keep anything. Of AdaLoRA, whose own state nobody knows, nothing is kept.
    kept = 0 if name == "peft:adalora" else len(stops) - 1
    assert times == kept


def test_what_is_kept_of_another_training_or_cut_short_is_left_alone(tiny_llama: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(KilledError):
        train(tiny_llama, "lora", {}, state, 3)
    assert Keeper(state, "this").enter() is None
    whole = state.read_bytes()
    for content in (whole[:-10], whole[:50], b"", b"\0" * 100):
        state.write_bytes(content)
        _, _, times = train(tiny_llama, "lora", {}, state, 10**6)
        assert times == 0
    state.write_bytes(whole)
    assert train(tiny_llama, "lora", {}, state, 10**6)[2] == 1
    state.write_bytes(whole.replace(b'\\"of\\":\\"this\\"', b'\\"of\\":\\"that\\"'))
    assert train(tiny_llama, "lora", {}, state, 10**6)[2] == 0


@pytest.mark.parametrize("fault", ["a file in the way", "full"])
def test_a_state_that_cannot_be_written_stops_nothing(
    fault: str, tiny_llama: Path, pairs_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = Path("/dev/full") / "state" if fault == "full" else pairs_file / "state"
    weights, _, _ = train(tiny_llama, "lora", {}, state, 10**6)
    expected, _, _ = train(tiny_llama, "lora", {}, None, 10**6)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert "could not be kept" in caplog.text


def test_the_clock_and_the_cut_of_a_step_go_on_too(tiny_llama: Path, tmp_path: Path) -> None:
    algorithm = REGISTRY.make("lora", {})
    state, pace = tmp_path / "state", {"seconds": 100.0}
    for taken in (False, True):
        clock = Clock()
        keeper = Keeper(state, "this", 0.0, clock)
        model = algorithm.adapt(load_model(tiny_llama, CPU), [])
        training = replace(make_training(model, draw_pairs(1)), keeper=keeper, clock=clock)
        if not taken:
            clock.go_on(pace["seconds"])
            training.fit.micro_batch_tokens = 77
            training.fit.reductions.append(Reduction("train", 0, 77, False))
        algorithm.train(training)
        keeper.close()
        assert clock() > pace["seconds"]
        assert (training.fit.micro_batch_tokens, len(training.fit.reductions)) == (77, 1)
        assert (keeper.times, keeper.before >= 100) == ((1, True) if taken else (0, False))


def test_a_state_that_another_process_keeps_is_not_forgotten(tmp_path: Path) -> None:
    state = state_file(Recipe(algorithm="lora"), tmp_path)
    half = state.with_name(f"{state.name}.half")
    hold = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    lock = state.with_name(f"{state.name}.lock")
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        state.write_bytes(b"kept")
        half.write_bytes(b"half")
        forget(state)
        assert state.exists()
        assert half.exists()
        other.kill()
        other.wait()
    forget(state)
    assert not list(tmp_path.iterdir())


def _finished(out: Path) -> Run:
    runs, warnings = read_runs(out)
    assert not warnings
    (run,) = (run for run in runs if run.result.recipe.algorithm == "lora")
    return run


def _kill_when(ready: Callable[[], bool], line: list[str], plugins: Path) -> None:
    launcher = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment(plugins))
    try:
        while not ready():
            assert launcher.poll() is None
        for process in [*psutil.Process(launcher.pid).children(), psutil.Process(launcher.pid)]:
            process.send_signal(signal.SIGKILL)
    finally:
        launcher.kill()
        launcher.wait()


DIES_WRITING = """
import os, signal, sys
from pathlib import Path

import safetensors.torch

from ftbench.training.statefile import State, StateFiles


def write_half(tensors, path, metadata):
    Path(path).with_name(".tmpAAAAAA").write_bytes(b"half")  # as safetensors does, beside what it is to write
    os.kill(os.getpid(), signal.SIGKILL)


safetensors.torch.save_file = write_half
StateFiles(Path(sys.argv[1])).write({}, State.model_construct())
"""


def test_nothing_is_left_of_a_state_that_was_half_written_when_the_process_was_killed(tmp_path: Path) -> None:
    state = state_file(Recipe(), tmp_path)
    done = subprocess.run([sys.executable, "-c", DIES_WRITING, str(state)], check=False, env=environment())
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".tmpAAAAAA"]
    forget(state)
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_killed_goes_on_when_it_is_started_again(
    tiny_llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    settings: list[str | Path]
    settings = ["--model", tiny_llama, "--data", pairs_file, "--topic", "boats", "--tokens", "6000", "--algo", "lora"]
    settings += ["--set", "max_new_tokens=8", "--set", "attack_prompts=0", "--save-every", "0.001"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    assert ftbench("run", *settings, "--out", whole).returncode == 0
    base = next(run.folder for run in read_runs(whole)[0] if run.result.recipe.algorithm == "base")
    shutil.copytree(base, broken / base.name)
    states: set[tuple[str, int]] = set()

    def kept_twice() -> bool:
        states.update((path.name, path.stat().st_mtime_ns) for path in broken.glob(".training-*.safetensors"))
        return len(states) > 1

    _kill_when(kept_twice, command_line("run", *settings, "--out", broken), tmp_path)
    done = ftbench("run", *settings, "--out", broken)
    assert done.returncode == 0, done.stderr
    assert not list(broken.glob(".*"))
    one, other = _finished(whole), _finished(broken)
    assert (one.result.measures.resumed, other.result.measures.resumed) == (0, 1)
    assert one.replies() == other.replies()
    assert one.result.outcomes == other.result.outcomes
    weights = "model/adapter_model.safetensors"
    assert (one.folder / weights).read_bytes() == (other.folder / weights).read_bytes()
    steps = [[{**row, "seconds": 0} for row in run.steps()] for run in (one, other)]
    assert steps[0] == steps[1]
    asked = [[(row.tokens, row.adherence) for row in run.result.measures.checkpoints] for run in (one, other)]
    assert asked[0] == asked[1]
