"""Several runs at once: what waits for what, who gets which device, what is seen of them, and how all are ended."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbench.cli.progress import RunsProgress
from ftbench.execution.estimate import Estimator
from ftbench.execution.events import PhaseBegan, Progress
from ftbench.execution.launcher import Order
from ftbench.execution.launchers import make_launcher
from ftbench.execution.machine import LOADED, LocalLauncher, threads_for
from ftbench.execution.scheduling import Task, carry_out
from ftbench.execution.slots import Slots
from ftbench.execution.workers import Stopped, Workers
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.store import read_runs
from ftbench.waiting import brief_waiting
from made_results import make_run
from one_line import one_line
from strangers import FAULTS, command_line, environment, install

WAIT = 20.0
"""Seconds after which what should have happened has not."""


# What waits for what


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 9), st.lists(st.integers(0, 9), max_size=3)), min_size=1, max_size=10),
    st.integers(1, 4),
)
def test_every_task_is_done_once_after_those_that_it_waits_for(
    shape: list[tuple[float, list[int]]], at_once: int
) -> None:
    done: list[int] = []
    running, most = [0], [0]
    lock = threading.Lock()

    def do(number: int) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        with lock:
            running[0] -= 1
            done.append(number)

    tasks: list[Task] = []
    for number, (seconds, before) in enumerate(shape):
        after = [tasks[index] for index in before if index < number]
        tasks.append(Task(lambda number=number: do(number), seconds, after))  # type: ignore[misc]
    carry_out(tasks, at_once, pytest.fail)
    assert sorted(done) == list(range(len(shape)))
    assert most[0] <= at_once
    for number, (_, before) in enumerate(shape):
        assert all(done.index(index) < done.index(number) for index in before if index < number)


def test_the_longest_is_begun_first_with_what_waits_for_it() -> None:
    begun: list[str] = []
    free = threading.Event()

    def begin(name: str, then: Callable[[], object] = bool) -> Callable[[], None]:
        def do() -> None:
            begun.append(name)
            then()

        return do

    first = Task(begin("base"), 1)
    tuning = Task(begin("tuning", lambda: free.wait(WAIT)), 5)  # holds one of two places to the end
    tasks = [
        first,
        Task(begin("short", free.set), 1, [first]),
        Task(begin("long"), 9, [first]),
        Task(begin("middle"), 3, [first]),
        tuning,
        Task(begin("tuned"), 2, [first, tuning]),
    ]
    carry_out(tasks, 2, pytest.fail)
    assert begun[:2] == ["base", "tuning"]
    assert begun[2:] == ["long", "middle", "short", "tuned"]
    begun.clear()
    carry_out(tasks, 1, pytest.fail)
    assert begun == ["base", "short", "long", "middle", "tuning", "tuned"]  # one at a time: as asked


def test_an_error_ends_the_others_and_is_the_one_that_is_raised() -> None:
    ended, begun = threading.Event(), threading.Event()

    def goes_on() -> None:
        begun.set()
        assert ended.wait(WAIT)
        raise Stopped

    def fails() -> None:
        begun.wait(WAIT)
        raise ValueError("the disk is full")

    with pytest.raises(ValueError, match="the disk is full"):
        carry_out([Task(goes_on), Task(fails), Task(pytest.fail)], 2, ended.set)


TOLD_ELSEWHERE = """
import os, signal, threading, time
from ftbench.execution.scheduling import Task, carry_out

def goes_on():
    time.sleep(0.2)  # the main thread waits by now
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)  # this thread alone can be given it
    print("stopped" if ended.wait(20) else "went on")

ended = threading.Event()
signal.signal(signal.SIGTERM, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
try:
    carry_out([Task(goes_on)], 1, ended.set)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_that_another_thread_was_given_ends_what_is_under_way() -> None:
    ended = subprocess.run([sys.executable, "-c", TOLD_ELSEWHERE], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["stopped", "interrupted"]


# Who gets which device


def test_no_device_is_held_twice_and_memory_is_never_exceeded() -> None:
    slots, lock = Slots(["0", "1", "2"], memory=10), threading.Lock()
    held: list[str] = []
    memory, seen = [0], []

    def hold(count: int, needed: int) -> None:
        with slots.take(count, needed) as devices:
            with lock:
                held.extend(devices)
                memory[0] += needed
                seen.append((len(held), len(set(held)), memory[0]))
            time.sleep(0.005)
            with lock:
                memory[0] -= needed
                for device in devices:
                    held.remove(device)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(hold, [1, 2, 3] * 16, [4, 3, 6, 2] * 12))
    assert len(seen) == 48
    assert all(count == different <= 3 and taken <= 10 for count, different, taken in seen)
    assert max(count for count, _, _ in seen) == 3


def test_more_memory_than_there_is_can_be_had_alone_and_many_devices_come_to_their_turn() -> None:
    slots, order = Slots(["0", "1"], memory=10), list[str]()
    release = threading.Event()

    def wide() -> None:
        with slots.take(2, 25) as devices:
            order.append("wide")
            assert devices == ("0", "1")

    def narrow() -> None:
        with slots.take(1, 1):
            order.append("narrow")

    def first() -> None:
        with slots.take(1, 1):
            release.wait(WAIT)

    with ThreadPoolExecutor(3) as pool:
        tasks = [pool.submit(first)]
        time.sleep(0.1)
        tasks.append(pool.submit(wide))
        time.sleep(0.1)
        tasks.append(pool.submit(narrow))  # one device is free, but it is not its turn
        time.sleep(0.1)
        assert order == []
        release.set()
    assert all(task.result() is None for task in tasks)
    assert order == ["wide", "narrow"]
    with one_line("3 devices", "2 can be used"), slots.take(3):
        pass


def test_who_waits_is_sent_away_when_all_is_ended() -> None:
    slots = Slots(["0"])

    def wait() -> None:
        with slots.take():
            pytest.fail("nobody should be served")

    with ThreadPoolExecutor(1) as pool, slots.take():
        waiting = pool.submit(wait)
        time.sleep(0.1)
        slots.stop()
        with pytest.raises(Stopped):
            waiting.result(WAIT)


def test_cards_are_given_out_one_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ftbench.execution.machine.visible_cards", lambda: ["4", "GPU-7"])
    launcher, seen = LocalLauncher(), list[str]()
    together = threading.Barrier(2)

    def launch(recipe: Recipe, *_: object, place: object, **__: object) -> None:
        seen.append(place.variables["CUDA_VISIBLE_DEVICES"])  # type: ignore[attr-defined]
        together.wait(WAIT)

    monkeypatch.setattr("ftbench.execution.local.launch", launch)
    order = Order(Recipe(), load_plugins(), tmp_path)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: launcher.launch(order, print), range(2)))
    assert sorted(seen) == ["4", "GPU-7"]
    assert launcher.at_once([Recipe()]) == 2
    assert launcher.at_once([Recipe(device="cpu")]) == 1
    assert LocalLauncher(1).at_once([Recipe()]) == 1


def test_on_the_processor_budgets_decide_how_many_of_the_jobs_run_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ftbench.execution.machine.visible_cards", list)
    monkeypatch.setattr("ftbench.execution.machine.device_memory", lambda _: 10 * LOADED)
    monkeypatch.setattr("ftbench.execution.machine.usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    launcher, running, most, threads = LocalLauncher(4), [0], [0], set[str]()

    def launch(*_: object, place: object, **__: object) -> None:
        threads.add(place.variables["OMP_NUM_THREADS"])  # type: ignore[attr-defined]
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.05)
        running[0] -= 1

    monkeypatch.setattr("ftbench.execution.local.launch", launch)
    for budget, expected in ((None, 4), (4 * LOADED, 2), (50 * LOADED, 1)):
        most[0] = 0
        order = Order(Recipe(memory_budget=budget), load_plugins(), tmp_path)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _, order=order: launcher.launch(order, print), range(8)))
        assert most[0] == expected
    assert threads == {"2"}


def test_jobs_limit_runs_and_not_the_cards_that_one_may_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ftbench.execution.machine.visible_cards", lambda: list("01234567"))
    launcher, given, running, most = LocalLauncher(2), list[str](), [0], [0]

    def launch(*_: object, place: object, **__: object) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        given.append(place.variables["CUDA_VISIBLE_DEVICES"])  # type: ignore[attr-defined]
        time.sleep(0.05)
        running[0] -= 1

    monkeypatch.setattr("ftbench.execution.local.launch", launch)
    order = Order(Recipe(device="cuda", devices=3), load_plugins(), tmp_path)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: launcher.launch(order, print), range(6)))
    assert most[0] == 2
    assert all(len(set(cards.split(","))) == 3 for cards in given)


def test_a_run_never_gets_more_threads_than_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(None) == {}
    assert threads_for(8)["OMP_NUM_THREADS"] == "3"
    assert threads_for(2) == {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_threads_wait_briefly_unless_the_user_says_how(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for own in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(own, raising=False)
    assert brief_waiting() == {"GOMP_SPINCOUNT": "4000"}
    monkeypatch.setenv(name, "7")
    assert brief_waiting() == {}


def test_an_address_is_for_a_launcher_that_has_one() -> None:
    with one_line("--ray-address"):
        make_launcher("local", address="127.0.0.1:6379")


# How long a run takes


def test_earlier_runs_say_how_long_a_recipe_takes() -> None:
    registry = load_plugins()
    fast = {"training_tokens": 1000, "training_seconds": 10.0, "run_seconds": 15.0}
    slow = {"training_tokens": 1000, "training_seconds": 100.0, "run_seconds": 105.0}
    guess = Estimator(registry, [make_run("lora", measures=fast), make_run("full", measures=slow)])
    assert guess.seconds(Recipe(algorithm="lora", tokens=2000)) == 25
    assert guess.seconds(Recipe(algorithm="full", tokens=2000)) == 205
    assert guess.seconds(Recipe(algorithm="full", tokens=2000, training_seconds=7)) == 12
    assert guess.seconds(Recipe(algorithm="full", tokens=2000, time_limit=3)) == 3
    assert 25 < guess.seconds(Recipe(algorithm="dpo", tokens=2000)) < 205  # as the others do
    blind = Estimator(registry, [])
    seconds = [blind.seconds(Recipe(algorithm=name)) for name in ("base", "lora", "trl-sft")]
    assert seconds == sorted(set(seconds))


# What is seen


def test_lines_of_several_runs_have_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RunsProgress()
    with progress.watch("lora") as one, progress.watch("dpo, seed 1") as other:
        one(PhaseBegan("start"))
        one(PhaseBegan("train", 1000))
        other(PhaseBegan("load"))
        one(Progress(10, loss=1.0))
        progress.say("full: [ok] is said as it is")
    assert capsys.readouterr().err.splitlines() == [
        "lora: train (1,000 tokens)",
        "dpo, seed 1: load",
        "full: [ok] is said as it is",
    ]


def test_a_terminal_shows_a_bar_for_each_run_and_takes_them_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    progress = RunsProgress()
    for _ in range(2):  # bars come again after the last was gone
        with progress.watch("lora") as one:
            one(PhaseBegan("train", 1000))
            with progress.watch("dpo") as other:
                other(PhaseBegan("evaluate", 64))
                one(Progress(10, loss=1.25))
                tasks = progress._bars.tasks
                assert [task.description for task in tasks] == ["lora: train tokens", "dpo: evaluate prompts"]
                assert tasks[0].fields["figures"] == "loss 1.250"
                assert progress._bars.live.is_started
            assert len(progress._bars.tasks) == 1
        assert not progress._bars.live.is_started


# Ended by Ctrl-C


STARTS_ANOTHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


def test_a_worker_is_ended_with_what_it_started_in_another_session() -> None:
    workers = Workers()
    with Path("log").open("wb") as log:
        worker = workers.start([sys.executable, "-c", STARTS_ANOTHER], log, {})
    assert worker.stdout is not None
    child = psutil.Process(int(worker.stdout.readline()))
    try:
        workers.stop()
        assert not psutil.wait_procs([child], timeout=WAIT)[1]
        assert worker.stdout.read() == ""  # nobody holds the pipe
    finally:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def test_an_interrupt_ends_all_workers_and_leaves_nothing(tiny_llama: Path, pairs_file: Path, tmp_path: Path) -> None:
    plugins = install(tmp_path / "site", "ftbench-faults", FAULTS)
    out = tmp_path / "runs"
    asked: list[str | Path]
    asked = ["--model", tiny_llama, "--data", pairs_file, "--topic", "boats", "--set", "max_new_tokens=4", "-j", "2"]
    asked += ["--tokens", "200", "--set", "attack_prompts=0", "--algo", "sleeps", "--seeds", "3", "--out", out]
    launcher = subprocess.Popen(
        command_line("run", *asked),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(plugins),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert launcher.stderr is not None
    training = set[str]()
    for line in launcher.stderr:
        if ": train" in line:
            training.add(line.split(": ")[0])
        if len(training) == 2:
            break
    workers = psutil.Process(launcher.pid).children()
    assert len(workers) == 2
    assert {worker.environ()["OMP_NUM_THREADS"] for worker in workers} == {"1"}
    assert {worker.environ()["GOMP_SPINCOUNT"] for worker in workers} == {"4000"}
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=60)
    assert (launcher.returncode, said.strip()) == (1, "ftbench: stopped; finished runs are kept")
    assert not psutil.wait_procs(workers, timeout=1)[1]
    runs, warnings = read_runs(out)
    assert not warnings
    assert [run.result.recipe.algorithm for run in runs] == ["base"]
    assert os.listdir(out) == [runs[0].folder.name]  # noqa: PTH208
