"""The contract tests: each is failed by an algorithm that breaks it, with words that help; good ones pass."""

import json
import pydoc
from pathlib import Path

import pytest
import torch

import broken
from ftbench.checking.checks import CHECKS, Check, Outcome, run_checks
from ftbench.checking.subject import Subject
from ftbench.checking.surroundings import differences, look
from ftbench.cli import main
from ftbench.plugins import load_plugins
from ftbench.registry import Registry
from inner_pytest import run_pytest
from strangers import install

BROKEN = """
import ftbench

class PerPrompt(ftbench.Algorithm):
    \"\"\"Returns a loss for each prompt.\"\"\"
    name = "per-prompt"
    def loss(self, logprobs):
        return -logprobs.chosen.per_token

@ftbench.hookimpl
def ftbench_algorithms():
    return [PerPrompt]
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return broken.registry(load_plugins())


def check(registry: Registry, name: str, folder: Path, *checks: str) -> dict[str, Outcome]:
    """Run some of the checks, by their names, or all."""
    subject = Subject(registry, name, {}, folder)
    wanted = [one for one in CHECKS if one.name in checks or not checks]
    return {outcome.check.name: outcome for outcome in run_checks(subject, wanted)}


# The algorithm, the check that it fails, and what the message must name besides the plugin.
BREAKERS = [
    ("takes-anything", "options", ["TakesAnything.Config", "unknown option", "forbid"]),
    ("misspelt-rate", "options", ["MisspeltRate.Config.learning_rte", "'learning_rate'"]),
    ("misspelt-adapter", "options", ["MisspeltAdapter.Config.adaptor", "'adapter'"]),
    ("misspelt-default", "options", ["MisspeltDefault.Config.full_learning_rte", "'full_learning_rate'"]),
    ("forgets", "options", ["Forgets.Config", "another when it is read"]),
    ("raises", "runs", ["phase 'train'", "Raises._no_such_thing", "broken.py", "KeyError", "no such"]),
    ("uphill", "trains", ["Uphill.loss", "stage 'train'", "must fall", "sign"]),
    ("touches-frozen", "trainable", ["TouchesFrozen.train", "'model.layers.1.mlp.up_proj.weight'", "requires_grad"]),
    ("unfreezes", "trainable", ["Unfreezes.train", "'model.layers.1.mlp.up_proj.weight'", "requires_grad"]),
    ("moves-buffers", "trainable", ["MovesBuffers.train", "'model.rotary_emb.inv_freq'"]),
    ("leaves-idle", "trainable", ["LeavesIdle.adapt", "model.gate", "requires_grad", "forward pass"]),
    ("own-trainer-forgets", "trainable", ["OwnTrainerForgets.train", "layers.1", "requires_grad"]),
    ("saves-zeros", "reloads", ["SavesZeros.load", "logits", "save()"]),
    ("keeps-in-mind", "reloads", ["KeepsInMind.load", "made anew", "save()"]),
    ("pickles", "reloads", ["Pickles.save", "'extra.pt'", "safetensors"]),
    ("changes-nothing", "reloads", ["ChangesNothing.train", "changed nothing"]),
    ("draws-anew", "seed", ["DrawsAnew.train", "same seed", "training.plan.seed"]),
    ("remembers", "resumes", ["Remembers.train", "killed half-way", "parameters"]),
    ("counts-micro-batches", "accumulation", ["CountsMicroBatches.loss", "logprobs.mean"]),
    ("hoards", "memory", ["Hoards.train", "bytes", "predicted"]),
    ("reseeds", "surroundings", ["Reseeds.adapt", "the seed of torch's random generator"]),
    ("leaves-traces", "surroundings", ["LeavesTraces.train", "BROKEN_BY", "torch's default dtype"]),
]


@pytest.mark.parametrize(("name", "failed", "words"), BREAKERS, ids=[breaker[0] for breaker in BREAKERS])
def test_who_breaks_the_contract_is_told_what_is_wrong(
    registry: Registry, tmp_path: Path, name: str, failed: str, words: list[str]
) -> None:
    outcome = check(registry, name, tmp_path, failed)[failed]
    assert outcome.verdict == "failed"
    assert "\n" not in outcome.text
    assert not [word for word in ["plugin ftbench-broken 0.3", *words] if word not in outcome.text], outcome.text


def test_pytest_runs_the_same_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", "ftbench-broken", BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "empty").mkdir()
    done = run_pytest(
        tmp_path / "empty", "--ftbench-algo", "per-prompt", settings=tmp_path / "pytest.ini", monkeypatch=monkeypatch
    )
    assert done.code == pytest.ExitCode.TESTS_FAILED
    assert done.of("passed") == ["ftbench:per-prompt::options"]
    assert done.of("failed") == ["ftbench:per-prompt::runs"]
    assert len(done.of("skipped")) == len(CHECKS) - 2
    (text,) = [str(report.longrepr) for report in done.all if report.failed]
    assert text.startswith("in phase 'train': plugin ftbench-broken 1.0, PerPrompt.loss: the loss has the shape [18]")
    assert text.endswith("read: python -m pydoc ftbench.Algorithm")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ftbench-algo", "lroa"], "did you mean 'lora'"),
        (["--ftbench-algo", "lora", "--ftbench-set", "lora.rnak=2"], "did you mean 'rank'"),
        (["--ftbench-algo", "lora", "--ftbench-set", "full.learning_rate=2"], "full.learning_rate=2"),
    ],
    ids=["name", "option", "owner"],
)
def test_pytest_is_told_of_a_typo_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    (tmp_path / "empty").mkdir()
    done = run_pytest(tmp_path / "empty", *arguments, settings=tmp_path / "pytest.ini", monkeypatch=monkeypatch)
    assert done.code == pytest.ExitCode.USAGE_ERROR
    assert words in capsys.readouterr().err


def test_the_command_prints_what_failed_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path / "site", "ftbench-broken", BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(SystemExit) as ended:
        main(["check", "per-prompt"])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "failed   runs" in said
    assert "PerPrompt.loss" in said
    assert f"1 of {len(CHECKS)} checks failed" in said
    with pytest.raises(SystemExit) as ended:
        main(["check", "base", "--json"])
    assert ended.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in rows if row["check"] in ("options", "runs", "surroundings")] == ["passed"] * 3
    assert {row["algorithm"] for row in rows} == {"base"}


def test_every_check_has_an_algorithm_that_fails_it() -> None:
    assert {failed for _, failed, _ in BREAKERS} == {one.name for one in CHECKS}


READ = {
    "options": "unknown option",
    "runs": "phases",
    "trains": "must fall",
    "trainable": "requires_grad",
    "reloads": "made anew",
    "seed": "same seed",
    "resumes": "killed",
    "accumulation": "whole effective",
    "memory": "have no values",
    "surroundings": "the environment",
}


@pytest.mark.parametrize("one", CHECKS, ids=[one.name for one in CHECKS])
def test_where_to_read_it_is_spoken_of(one: Check) -> None:
    assert READ[one.name] in " ".join(pydoc.getdoc(pydoc.locate(one.read)).split()), one.read


# The likely mistakes of an author: who makes them is named by plugin and method, and is told the mend.
MISTAKES = [
    ("per-prompt", ["PerPrompt.loss", "shape [18]", "scalar", "logprobs.mean(values)"]),
    ("no-return", ["NoReturn.loss", "NoneType", "return"]),
    ("detached", ["Detached.loss", "no trainable parameter", "detach()"]),
    ("misspelt-field", ["MisspeltField.loss", "no field 'wieght'", "did you mean 'weight'?"]),
    ("wants-pairs", ["WantsPairs.loss", "needs = 'preferences'"]),
    ("frozen", ["Frozen.adapt", "requires_grad"]),
]


@pytest.mark.parametrize(("name", "words"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_a_likely_mistake_is_named_with_its_mend(
    registry: Registry, tmp_path: Path, name: str, words: list[str]
) -> None:
    outcome = check(registry, name, tmp_path, "runs")["runs"]
    assert outcome.verdict == "failed"
    assert not [word for word in ["plugin ftbench-broken 0.3", *words] if word not in outcome.text], outcome.text


@pytest.mark.parametrize("name", ["base", "lora"])  # all of them: .ci/run
def test_shipped_algorithms_pass(registry: Registry, tmp_path: Path, name: str) -> None:
    before = look()
    found = check(registry, name, tmp_path)
    assert not differences(before, look())
    assert not [outcome.text for outcome in found.values() if outcome.verdict == "failed"]
    passed = {key for key, outcome in found.items() if outcome.verdict == "passed"}
    assert passed >= {"options", "runs", "surroundings"}
    if name != "base":
        assert passed == {one.name for one in CHECKS}
    assert torch.get_default_dtype() == torch.float32
