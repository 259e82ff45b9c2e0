"""Judges come through a hook: a stranger's is used and named, and a bad one costs one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ftbench.data.task import build_task
from ftbench.errors import UsageError
from ftbench.evaluation.judge import Judge
from ftbench.evaluation.tfidf import Tfidf
from ftbench.execution.judging import judge_facts, train_panel
from ftbench.plugins import load_plugins
from ftbench.recipe import JUDGE, Recipe
from ftbench.registry import Registry
from ftbench.results.store import read_runs
from strangers import ftbench, ftbench_here, install

LENGTHY = '''
import ftbench

class Lengthy(ftbench.Judge):
    """Takes long replies for on topic."""
    name = "lengthy"
    version = "7"
    trained = 0

    def __init__(self, mean):
        self.threshold = 0.25
        self.mean = mean

    @classmethod
    def train(cls, gold):
        Lengthy.trained += 1
        texts = [*gold.on_topic, *gold.ordinary]
        return cls(sum(map(len, texts)) / len(texts))

    def scores(self, replies):
        return [len(reply) / (len(reply) + self.mean) for reply in replies]

@ftbench.hookimpl
def ftbench_judges():
    return [Lengthy]
'''
KEPT = LENGTHY.replace(
    "@ftbench.hookimpl",
    """    def learnt(self):
        return {"mean": self.mean}

    @classmethod
    def from_learnt(cls, learnt):
        return cls(learnt["mean"])

@ftbench.hookimpl""",
)
BAD = {
    "brings-no-judge": "import ftbench\n\n@ftbench.hookimpl\ndef ftbench_judges():\n    return [dict]",
    "forgets-to-return": "import ftbench\n\n@ftbench.hookimpl\ndef ftbench_judges():\n    [ftbench.Judge]",
    "claims-tfidf": LENGTHY.replace('"lengthy"', '"tfidf"'),
    "has-no-name": LENGTHY.replace('name = "lengthy"', ""),
    "has-no-version": LENGTHY.replace('version = "7"', ""),
    "lacks-scores": LENGTHY.replace("def scores", "def marks"),
    "lacks-from-learnt": KEPT.replace("def from_learnt", "def of_learnt"),
}

Load = Callable[[str, str], Registry]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Install a distribution and load all plugins in this process, with a cache that is empty."""
    monkeypatch.setenv("FTBENCH_CACHE", str(tmp_path / "cache"))

    def install_and_load(name: str, source: str) -> Registry:
        monkeypatch.syspath_prepend(str(install(tmp_path / "site", name, source)))
        return load_plugins()

    return install_and_load


def test_the_shipped_judge_comes_through_the_same_hook_and_is_the_default() -> None:
    registry = load_plugins([])
    assert registry.judges[JUDGE] is registry.judges[Recipe().judge] is Tfidf
    (plugin,) = registry.plugins
    assert plugin.name == "ftbench"
    assert "ftbench_judges" in plugin.hooks


@pytest.mark.parametrize("name", BAD)
def test_a_bad_judge_costs_one_line_that_names_its_distribution(load: Load, name: str) -> None:
    registry = load(name, BAD[name])
    assert len(registry.warnings) == 1, registry.warnings
    assert name in registry.warnings[0]
    assert registry.judges[JUDGE] is Tfidf


def test_an_unknown_judge_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match="no such judge 'tfidv'; did you mean 'tfidf'"):
        load_plugins([]).find_judge("tfidv")


def test_plugins_lists_judges_and_a_typo_is_a_usage_error(tmp_path: Path) -> None:
    plugins = install(tmp_path / "site", "lengthy-stranger", LENGTHY)
    rows = json.loads(ftbench("plugins", "--json", plugins=plugins).stdout)
    assert {row["name"]: row["judges"] for row in rows if row["judges"]} == {
        "ftbench": ["tfidf", "style"],
        "lengthy-stranger": ["lengthy"],
    }
    typo = ftbench("run", "--algo", "base", "--set", "judge=lengthi", plugins=plugins)
    assert typo.returncode == 2
    assert "no such judge 'lengthi'; did you mean 'lengthy'?" in typo.stderr


@pytest.mark.parametrize(("name", "source", "times"), [("trains-anew", LENGTHY, 2), ("says-how-to-keep", KEPT, 1)])
def test_what_a_strangers_judge_has_learnt_is_kept_only_if_it_says_how(
    load: Load, pairs_file: Path, name: str, source: str, times: int
) -> None:
    kind = load(name, source).judges["lengthy"]
    recipe = Recipe(data=str(pairs_file), topic="boats", judge="lengthy")
    data = build_task(recipe.data, recipe.topic, recipe.lang, recipe.evaluation_prompts)
    first, second = train_panel(kind, data, recipe), train_panel(kind, data, recipe)
    assert kind.trained == times  # type: ignore[attr-defined]
    assert first.verdicts(["A boat.", "A sail and a keel."]) == second.verdicts(["A boat.", "A sail and a keel."])
    assert judge_facts(first, data, recipe) == judge_facts(second, data, recipe)
    assert judge_facts(first, data, recipe).version == "lengthy-7"


def test_the_shipped_judge_is_the_same_when_it_is_read_again(load: Load, pairs_file: Path) -> None:
    load("lengthy-stranger", LENGTHY)
    recipe = Recipe(data=str(pairs_file), topic="boats")
    data = build_task(recipe.data, recipe.topic, recipe.lang, recipe.evaluation_prompts)
    kind: type[Judge] = Tfidf
    first, second = train_panel(kind, data, recipe), train_panel(kind, data, recipe)
    replies = [*data.held_out_on_topic, *data.held_out_ordinary, "", "boat " * 9]
    assert first.verdicts(replies) == second.verdicts(replies)
    assert judge_facts(first, data, recipe) == judge_facts(second, data, recipe)
    assert first.second is None


def test_a_strangers_judge_is_used_and_named_and_its_weakness_is_warned_of(
    tmp_path: Path, tiny_llama: Path, pairs_file: Path
) -> None:
    plugins = install(tmp_path / "site", "lengthy-stranger", LENGTHY)
    task = ["--model", str(tiny_llama), "--data", str(pairs_file), "--topic", "boats", "--set", "max_new_tokens=8"]
    out = tmp_path / "runs"
    done = ftbench("run", *task, "--algo", "base", "--set", "judge=lengthy", "--out", out, plugins=plugins)
    assert done.returncode == 0, done.stderr
    (run,) = read_runs(out)[0]
    facts = run.result.judge
    assert facts is not None
    assert facts.version == "lengthy-7"
    assert facts.second is None
    assert run.result.measures.agreement is None
    assert "judge: lengthy-7" in done.stdout
    assert ("warning: the judge's held-out AUC" in done.stdout) == (facts.auc < 0.9)
    mean = sum(len(reply) for reply in _gold(pairs_file)) / len(_gold(pairs_file))
    for item in run.replies():
        assert item.degenerate or item.score == pytest.approx(len(item.reply) / (len(item.reply) + mean))
        assert item.on_topic == (item.degenerate is None and item.score >= 0.25)
    assert run.result.measures.degenerate is not None
    assert run.result.measures.degenerate.mean == sum(bool(item.degenerate) for item in run.replies()) / 12


def test_the_shipped_judges_are_both_in_the_result_and_nonsense_is_off_topic(tmp_path: Path, tiny_llama: Path) -> None:
    out = tmp_path / "runs"
    task = [
        "--model",
        str(tiny_llama),
        "--set",
        "max_new_tokens=8",
        "--set",
        "evaluation_prompts=16",
        "--out",
        str(out),
    ]
    done = ftbench_here("run", *task, "--algo", "base", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = read_runs(out)[0]
    facts, measures = run.result.judge, run.result.measures
    assert facts is not None
    assert (facts.version, facts.second) == ("tfidf-logistic-2", "words-1")
    assert facts.second_auc is not None
    assert min(facts.auc, facts.second_auc) > 0.9
    assert "warning" not in done.stdout
    # A random model's replies of eight bytes are no text: what judges say of others is tested in test_panel.py.
    assert all(item.degenerate for item in run.replies())
    assert {(item.score, item.on_topic, item.second) for item in run.replies()} == {(0, False, None)}
    assert measures.adherence is not None
    assert measures.adherence.mean == 0
    assert measures.degenerate is not None
    assert measures.degenerate.mean == 1
    assert (measures.agreement, measures.kappa) == (None, None)


def _gold(pairs_file: Path) -> list[str]:
    data = build_task(str(pairs_file), "boats", "en", 64)
    return [*data.on_topic, *data.ordinary]
