"""A stranger's data, task, model or judge that raises, or returns what it must not, is named in one line."""

import sys
from pathlib import Path

import pytest

from ftbench.cli import main
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from strangers import ftbench_here, install
from working_here import run

ROWS = """
class Rows(ftbench.DataSource):
    name = "odd"
    about = "odd rows"
    def rows(self):
        {body}

@ftbench.hookimpl
def ftbench_data():
    return [Rows]
"""
TASK = """
class Taught(ftbench.Task):
    name = "odd"
    def build(self, source, topic, wanted):
        {body}

@ftbench.hookimpl
def ftbench_tasks():
    return [Taught]
"""
MODEL = """
class Made(ftbench.ModelSource):
    name = "odd"
    about = "an odd model"
    def locate(self, cache):
        {body}

@ftbench.hookimpl
def ftbench_models():
    return [Made]
"""
JUDGE = """
class Judging(ftbench.Judge):
    name = "odd"
    version = "1"
    threshold = 0.5
    @classmethod
    def train(cls, gold):
        {train}
    def scores(self, replies):
        {scores}

@ftbench.hookimpl
def ftbench_judges():
    return [Judging]
"""
RAISES = "return {}['nothing']"
TELL = {
    "data": ["data", "odd"],
    "task": ["data", "sample", "--task", "odd"],
    "model": ["plan", "--algo", "full", "--model", "odd"],
}


def bring(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.delitem(sys.modules, "odd_one", raising=False)
    monkeypatch.syspath_prepend(str(install(folder / "site", "odd-one", f"import ftbench\n{source}")))


@pytest.mark.parametrize(
    ("asked", "source", "words"),
    [
        ("data", ROWS.format(body=RAISES), ["plugin odd-one 1.0, Rows.rows (line ", "KeyError: 'nothing'"]),
        ("data", ROWS.format(body="yield from ({}['nothing'], )"), ["plugin odd-one 1.0, Rows.rows", "KeyError"]),
        ("data", ROWS.format(body="return None"), ["odd_one, Rows.rows returned NoneType", "Iterable"]),
        ("data", ROWS.format(body="return [{'prompt': 'a', 'chosen': 'b'}, 3]"), ["odd_one, Rows.rows: row 2", "int"]),
        ("task", TASK.format(body=RAISES), ["plugin odd-one 1.0, Taught.build (line ", "KeyError: 'nothing'"]),
        ("task", TASK.format(body="return []"), ["odd_one, Taught.build returned list", "TaskData"]),
        ("model", MODEL.format(body=RAISES), ["plugin odd-one 1.0, Made.locate (line ", "KeyError: 'nothing'"]),
        ("model", MODEL.format(body="return '/tmp'"), ["odd_one, Made.locate returned str", "Path"]),
    ],
)
def test_it_is_named_before_anything_runs(
    asked: str,
    source: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bring(tmp_path, monkeypatch, source)
    with pytest.raises(SystemExit) as ended:
        main(TELL[asked])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(tmp_path, monkeypatch, ROWS.format(body=RAISES))
    with pytest.raises(KeyError):
        main(["--debug", "data", "odd"])


def test_what_ftbench_itself_raises_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("ftbench.data.sources.read_rows", fail)
    with pytest.raises(ZeroDivisionError):
        main(["data", "sample"])


IDLE = """
import torch

class Idle(ftbench.Algorithm):
    name = "idle"
    def adapt(self, model, calibration):
        model.model.gate = torch.nn.Parameter(torch.ones(3))
        return model
    def save(self, model, folder):
        del model.model.gate
        super().save(model, folder)
    def warnings(self):
        return ["the gate rests"]

@ftbench.hookimpl
def ftbench_algorithms():
    return [Idle]
"""


def test_a_parameter_without_a_gradient_is_warned_of_and_what_an_algorithm_says_is_passed_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, monkeypatch, IDLE)
    asked = ["--model", recipe.model, "--data", recipe.data, "--topic", recipe.topic, "--tokens", "1500"]
    few = ["--set", "max_new_tokens=4", "--set", "attack_prompts=0", "--set", "checkpoints=0"]
    done = ftbench_here("run", *asked, *few, "--algo", "idle", "--out", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).splitlines()
    assert "warning: plugin odd-one 1.0, the gate rests" in said
    (line,) = [line for line in said if "Idle.adapt" in line]
    assert all(word in line for word in ("model.gate", "requires_grad", "forward pass")), line


@pytest.mark.parametrize(
    ("train", "scores", "words"),
    [
        (RAISES, "return []", ["plugin odd-one 1.0, Judging.train (line ", "KeyError: 'nothing'"]),
        ("return 3", "return []", ["odd_one, Judging.train returned int", "Judge"]),
        ("return cls()", RAISES, ["plugin odd-one 1.0, Judging.scores (line ", "KeyError: 'nothing'"]),
        ("return cls()", "return []", ["odd_one, Judging.scores", "one for each"]),
    ],
)
def test_a_judge_is_named_in_the_result(
    train: str, scores: str, words: list[str], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path, monkeypatch, JUDGE.format(train=train, scores=scores))
    assert "odd" in load_plugins().judges
    result = run(recipe.change(judge="odd"), tmp_path / "runs").result
    assert result.status == "failed"
    assert result.reason is not None
    assert all(word in result.reason for word in words), result.reason
