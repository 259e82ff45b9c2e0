"""What is told to other tools about a run: in a process of its own, which can cost a run nothing but a warning."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from ftbench.errors import UsageError
from ftbench.execution import reporter, reporting
from ftbench.execution.events import Progress
from ftbench.execution.reporting import final_figures, read_tools
from ftbench.recipe import Recipe
from ftbench.results.result import Result
from made_results import make_run
from strangers import ftbench_here

ROWS = [
    {"step": step, "stage": "train", "loss": 2.0 / step, "grad_norm": 1.0, "learning_rate": 0.1, "tokens": 10 * step}
    for step in (1, 2, 3)
]
FAULTY = """
import os, sys, time
from pathlib import Path

class SummaryWriter:
    def __init__(self, log_dir):
        self.log_dir = log_dir
    def add_text(self, *_):
        {begin}
    def add_scalar(self, *_):
        {log}
    def flush(self):
        pass
    def close(self):
        pass
"""


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Read what TensorBoard's files hold: of each figure the last that was said of a step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: {each.step: each.value for each in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def tell(tmp_path: Path, result: Result, patience: float = reporting.PATIENCE) -> list[str]:
    """Tell TensorBoard of three steps and a result, which may take so many seconds then; return the warnings."""
    (tmp_path / "run").mkdir(exist_ok=True)
    heard: list[object] = []
    with reporting.reporting(("tensorboard",), result.recipe, tmp_path, tmp_path / "run") as told:
        assert told is not None
        hear = told.beside(heard.append)
        for row in ROWS:
            hear(Progress(10, 1.0, 5.0, 2**20, row))
        assert len(heard) == len(ROWS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reporting, "PATIENCE", patience)
            return told.end(result)


def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, begin: str = "pass", log: str = "pass") -> None:
    """Put a writer of TensorBoard's in the place of torch's, for the process that is started."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "faulty.py").write_text(FAULTY.format(begin=begin, log=log))
    hook = "import sys, faulty; sys.modules['torch.utils.tensorboard'] = faulty"
    (tmp_path / "site" / "sitecustomize.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")


def test_every_step_and_the_result_are_read_back_from_tensorboards_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    result = make_run("lora").result
    assert tell(tmp_path, result) == []
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == f"lora-s0-{result.recipe.digest()[:8]}"
    found = scalars(folder)
    assert found["train/loss"] == pytest.approx({1: 2, 2: 1, 3: 2 / 3})
    assert result.measures.adherence is not None
    assert found["eval/adherence"] == pytest.approx({3: result.measures.adherence.mean})
    finals = final_figures(result)
    assert found["train/peak_memory_bytes"][3] == pytest.approx(finals["peak_memory_bytes"])
    assert found["train/tokens_per_second"][3] == pytest.approx(finals["tokens_per_second"])
    assert result.recipe.digest().encode() in next(folder.iterdir()).read_bytes()  # the recipe is its configuration
    assert tell(tmp_path, result) == []
    assert scalars(folder) == found  # a second run is drawn as a second line
    assert scalars(folder.with_name(f"{folder.name}-2")).keys() == found.keys()


def test_of_runs_that_are_sent_to_a_url_the_files_lie_where_somebody_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = SimpleNamespace(begin=lambda about: folders.append(about["folder"]), stop=lambda: None)
    folders: list[str] = []
    monkeypatch.setattr(reporting, "Reporting", lambda *_: begun)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: None)
    (tmp_path / "run").mkdir()
    for out in (tmp_path / "mirror" / ".outbox", tmp_path / "mine"):
        with reporting.reporting(("tensorboard",), Recipe(), out, tmp_path / "run"):
            pass
    assert folders == [str(tmp_path / "runs"), str(tmp_path / "mine")]


def test_trackio_is_told_of_a_second_run_by_another_name_and_the_others_by_its_own(tmp_path: Path) -> None:
    with patch.dict(os.environ):
        names = [reporter._prepare(tmp_path, "lora-s0", [tool]) for tool in ("trackio", "trackio", "mlflow", "wandb")]
    assert names[2:] == ["lora-s0", "lora-s0"]
    assert all(name.startswith("lora-s0-") for name in names[:2])
    assert len(set(names[:2])) == 2


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"begin": "raise OSError('no\\nserver')"}, "tensorboard: heard nothing after the start: OSError: no server"),
        ({"log": "sys.exit('quota')"}, "tensorboard: heard nothing after step 1: SystemExit: quota"),
        ({"log": "os._exit(7)"}, "tensorboard: ended with code 7; see reporting.txt"),
        ({"log": "time.sleep(600)"}, "tensorboard: not done 3 s after the run; see reporting.txt"),
    ],
    ids=["at the start", "at a step", "ends its process", "hangs"],
)
def test_a_tool_that_fails_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: dict[str, str], said: str
) -> None:
    fault(tmp_path, monkeypatch, **faults)
    patience = 3.0 if "sleep" in str(faults) else reporting.PATIENCE
    assert tell(tmp_path, make_run("lora").result, patience) == [f"--report-to {said}"]


def test_two_runs_at_once_let_their_tools_begin_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(tmp_path, monkeypatch, begin="Path('busy').mkdir(); time.sleep(2); Path('busy').rmdir()")
    places = [tmp_path / name for name in ("one", "other")]
    for place in places:
        place.mkdir()
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda place: tell(place, make_run("lora").result), places)) == [[], []]


def test_a_run_is_the_same_with_a_tool_that_fails_and_says_so(
    tiny_llama: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder is needed")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(blocked))
    settings = ["--model", str(tiny_llama), "--data", str(pairs_file), "--topic", "boats", "--tokens", "500"]
    settings += ["--set", "max_new_tokens=4", "--set", "evaluation_prompts=4", "--set", "attack_prompts=0"]
    done = ftbench_here("run", *settings, "--algo", "base", "--report-to", "tensorboard", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").glob("*/result.json")
    told = json.loads(path.read_text())
    (warning,) = told["warnings"]
    assert warning.startswith("--report-to tensorboard: heard nothing after the start: ")
    assert f"warning: {warning}" in done.stderr
    assert "report" not in path.with_name("recipe.toml").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tensorbord", "no such tool 'tensorbord'; did you mean 'tensorboard'?"),
        ("tensorboard,codecarbon", "no such tool 'codecarbon'"),
        ("neptune", "neptune is not installed; pip install neptune"),
    ],
)
def test_what_cannot_be_told_is_said_before_anything_runs(given: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"^--report-to: ") as raised:
        read_tools(given)
    assert said in str(raised.value)


def test_each_tool_is_told_once() -> None:
    assert read_tools(None) == ()
    assert read_tools("TensorBoard, tensorboard") == ("tensorboard",)
