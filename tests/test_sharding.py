"""A model over two processes is trained to the same end as in one, and takes what was predicted."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from ftbench.checking.tiny import make_gpt2, make_llama
from ftbench.execution.forecast import Question, forecast
from ftbench.execution.ranks import join
from ftbench.memory.plan import Cut
from ftbench.models.loading import load_model
from ftbench.models.skeleton import load_config
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.store import read_runs
from ftbench.training.batching import batch_tokens
from ftbench.training.sharding import Ranks, deal, decoder_layers
from rank import CASES, plan_of, train
from rank_killed import KILLED
from strangers import command_line, environment, ftbench, install
from tiny import draw_pairs

CPU = torch.device("cpu")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    make_llama(root / "llama")
    make_gpt2(root / "gpt2")
    make_llama(root / "deep", hidden_size=96, intermediate_size=192, num_hidden_layers=5)
    config = make_llama(root / "untied") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": False}))
    weights = load_file(root / "untied" / "model.safetensors")
    head = weights["model.embed_tokens.weight"].flip(0)
    save_file({**weights, "lm_head.weight": head}, root / "untied" / "model.safetensors", {"format": "pt"})
    return root


@pytest.fixture(scope="module")
def together(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of all cases."""
    out = tmp_path_factory.mktemp("together")
    script = Path(__file__).with_name("rank.py")
    done = subprocess.run(
        [*TORCHRUN, "2", str(script), str(models), str(out)],
        env={**environment(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_does(case: str, models: Path, together: Path, tmp_path: Path) -> None:
    found: dict[str, Any] = json.loads((together / "found.json").read_text())[case]
    alone = train(case, models, Ranks(), tmp_path)
    half = CASES[case][3] == "bf16"
    close = 1e-3 if half else 1e-5
    assert len(alone["reports"]) >= 2
    for one, two in zip(alone["reports"], found["reports"], strict=True):
        assert two.pop("loss") == pytest.approx(one.pop("loss"), rel=close)
        assert two.pop("grad_norm") == pytest.approx(one.pop("grad_norm"), rel=100 * close if half else close)
        assert one == two
    assert found["tied"] == alone["tied"] == (CASES[case][0] != "untied")
    ones, twos = (load_file(folder / f"{case}.safetensors") for folder in (tmp_path, together))
    start = dict(load_model(models / CASES[case][0], CPU).named_parameters())
    assert ones.keys() == twos.keys()
    moved = max((one.float() - start[name].float()).abs().max().item() for name, one in ones.items())
    assert moved > 1e-3
    for name, one in ones.items():
        torch.testing.assert_close(twos[name], one, rtol=0, atol=0.2 * moved if half else 1e-5)


@pytest.mark.parametrize("case", ["deep full", "deep lora", "llama checkpointing"])
def test_the_plan_counts_what_a_rank_holds(case: str, models: Path, together: Path) -> None:
    kind, name, options, precision = CASES[case]
    folder = models / kind
    peaks = json.loads((together / "found.json").read_text())[case]["peaks"]
    plan, way = plan_of(load_model(folder, CPU)), Cut(100, case.endswith("checkpointing"))
    found = []
    for devices in (1, 2):
        question = Question(load_config(folder), plan, CPU, precision, None, devices)
        found.append(forecast(question, load_plugins().make(name, options), [way])[0].peak)
    counted = max(sum(peak["train"].values()) for peak in peaks)
    # Whether the next layer's values come in before this one's have gone is a matter of timing.
    layer = sum(one.nbytes for one in decoder_layers(load_model(folder, CPU, precision))[0].parameters())
    assert abs(found[1].total - counted) <= 0.05 * counted + layer
    assert found[1].optimiser == pytest.approx(found[0].optimiser / 2, rel=0.01)
    assert found[1].total < 0.9 * found[0].total


@pytest.mark.parametrize("case", KILLED)
def test_two_processes_that_were_killed_end_where_unbroken_ones_do(case: str, together: Path) -> None:
    found = json.loads((together / "found.json").read_text())["killed"][case]
    assert found["steps"] > 6
    assert (found["rows differ"], found["differ"]) == (False, [[], []])
    # Two were killed before they had kept anything. What was written but did not count yet was not taken up.
    assert found["times"] == 3
    shares = [[name for name in names if not name.endswith(".lock")] for names in found["files"]]
    assert list(map(len, shares)) == [4, 2]  # it goes with the next that counts
    assert found["times without a share"] == 0


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_step_is_dealt_so_that_all_pass_as_often(ranks: int) -> None:
    examples = draw_pairs(5, 7)
    shares = deal(examples, 120, ranks)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    assert Counter(one for share in shares for batch in share for one in batch) == Counter(examples)
    assert all(batch_tokens(batch) <= 120 or len(batch) == 1 for share in shares for batch in share)
    loads = [sum(map(batch_tokens, share)) for share in shares]
    assert max(loads) - min(loads) <= max(example.tokens for example in examples)


def test_a_recipe_for_one_device_has_the_digest_that_it_always_had() -> None:
    assert Recipe().digest() == "d9311025ca4772ed8093f2f1608a852dfb7173ea04f199c461a6dcd1f0daa381"
    assert Recipe(devices=2).digest() != Recipe().digest()


ARGUMENTS = ["--device", "cpu", "--devices", "2", "--set", "max_new_tokens=4", "--set", "evaluation_prompts=8"]
ARGUMENTS += ["--set", "attack_prompts=0", "--set", "precision=float32"]


def test_a_run_over_two_devices(models: Path, tmp_path: Path) -> None:
    asked = ["run", "--algo", "full", "--algo", "trl-sft", "--model", str(models / "llama"), "--tokens", "1500"]
    small = ["--set", "checkpoints=1", "--set", "checkpoint_prompts=2", "--set", "effective_batch_size=3"]
    done = ftbench(*asked, *ARGUMENTS, *small, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    runs = {run.result.recipe.algorithm: run for run in read_runs(tmp_path)[0]}
    full = runs["full"].result
    assert full.status == "ok"
    assert full.measures.trainable_parameters == full.measures.total_parameters
    assert [point.tokens for point in full.measures.checkpoints][-1] == full.measures.training_tokens
    assert runs["trl-sft"].result.status == "skipped"
    assert "--devices" in (runs["trl-sft"].result.reason or "")


STRANGER = """
import os, signal
from pathlib import Path
import ftbench

class Dies(ftbench.Algorithm):
    \"\"\"One rank alone is killed, as by the kernel when memory runs out; once, when two states were kept.\"\"\"
    name = "dies"
    states = 0
    seen = None
    def loss(self, logprobs):
        if os.environ["RANK"] == "1" and not Path("killed").exists():
            there = set(Path("runs").glob(".training-dies-*.safetensors.1-*"))
            self.states += there != self.seen
            self.seen = there
            if self.states > 2:
                Path("killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return logprobs.nll()

class Raises(ftbench.Algorithm):
    \"\"\"One rank alone raises.\"\"\"
    name = "raises"
    def loss(self, logprobs):
        if os.environ["RANK"] == "1":
            raise KeyError("no such layer")
        return logprobs.nll()

@ftbench.hookimpl
def ftbench_algorithms():
    return [Dies, Raises]
"""


def test_a_rank_that_dies_ends_the_run_with_a_reason_and_it_goes_on(models: Path, tmp_path: Path) -> None:
    install(tmp_path, "ftbench-stranger", STRANGER)
    asked = ["run", "--model", str(models / "llama"), "--tokens", "4000", *ARGUMENTS]
    asked += ["--set", "effective_batch_size=2", "--save-every", "0.001", "--out", "runs", "--algo", "dies"]
    done = ftbench(*asked, "--algo", "raises", plugins=tmp_path, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    ended = {run.result.recipe.algorithm: run.result for run in read_runs(tmp_path / "runs")[0]}
    assert ended["dies"].status == "out-of-memory"
    assert "SIGKILL" in (ended["dies"].reason or "")
    assert ended["raises"].status == "failed"
    assert "no such layer" in (ended["raises"].reason or "")
    kept = {path.name.partition("-s0")[0] for path in (tmp_path / "runs").glob(".training-*")}
    assert kept == {".training-dies"}  # what raises would do so again
    again = ftbench(*asked, plugins=tmp_path, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    runs = [run.result for run in read_runs(tmp_path / "runs")[0] if run.result.recipe.algorithm == "dies"]
    (found,) = [result for result in runs if result.status == "ok"]
    assert found.measures.resumed == 1
    assert not list((tmp_path / "runs").glob(".*"))


def test_an_interrupt_before_the_ranks_have_met_ends_all_of_them_at_once(models: Path, tmp_path: Path) -> None:
    line = command_line("run", "--model", models / "llama", *ARGUMENTS, "--out", tmp_path / "runs", "--algo", "full")
    launcher = subprocess.Popen(
        line, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    ranks: list[psutil.Process] = []
    try:
        while len(ranks) < 2:
            assert launcher.poll() is None
            time.sleep(0.02)
            ranks = [one for one in psutil.Process(launcher.pid).children(recursive=True) if is_rank(one)]
        launcher.send_signal(signal.SIGINT)
        _, said = launcher.communicate(timeout=120)
        assert (launcher.returncode, said.strip()) == (1, "ftbench: stopped; finished runs are kept")
        assert not psutil.wait_procs(ranks, timeout=60)[1]
        assert not list((tmp_path / "runs").iterdir())
    finally:
        launcher.kill()
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.kill()


def is_rank(process: psutil.Process) -> bool:
    try:
        return "ftbench.execution.worker" in process.cmdline()
    except psutil.Error:
        return False


def test_a_rank_whose_starter_is_gone_before_it_begins_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr("os._exit", lambda _: ended.set())
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1"), ("FTBENCH_STARTER", str(2**22 + 1))):
        monkeypatch.setenv(name, value)
    assert join() == Ranks(2, 1)
    assert ended.wait(10)
