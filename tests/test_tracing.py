"""FTBENCH_TRACE=1 says what plugins did, and changes nothing of it."""

import copy
import inspect
import re
from pathlib import Path

import pytest

from ftbench.algorithm import Algorithm
from ftbench.evaluation.judge import Gold, Judge
from ftbench.observing import METHODS
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.tracing import VARIABLE, trace, traced
from strangers import FAULTS, ftbench, install
from tiny import load, train

BRINGS = '''
import ftbench

class Loud(ftbench.Task):
    """Answer loudly."""
    name = "loud"
    judge = "loudness"
    def build(self, source, topic, wanted):
        examples = [ftbench.Example(prompt, reply + "!", reply) for prompt, reply in ftbench.ordinary_replies(source)]
        return ftbench.split_examples(source, examples, topic, wanted)

class Loudness(ftbench.Judge):
    """Counts."""
    name = "loudness"
    version = "1"
    threshold = 0.5
    @classmethod
    def train(cls, gold):
        return cls()
    def scores(self, replies):
        return [float(reply.endswith("!")) for reply in replies]

class Rows(ftbench.DataSource):
    """Some pairs."""
    name = "rows"
    about = "some pairs"
    def rows(self):
        return [{"prompt": f"ask {n}", "chosen": f"answer {n} of boats", "rejected": f"no {n}"} for n in range(40)]

class House(ftbench.ModelSource):
    """A model of the house."""
    name = "house"
    about = "the house's"
    def locate(self, cache):
        raise RuntimeError("not at home")

class Section(ftbench.ReportSection):
    """Fails."""
    name = title = "section"
    def build(self, runs):
        return 1 / 0

@ftbench.hookimpl
def ftbench_tasks():
    return [Loud]

@ftbench.hookimpl
def ftbench_data():
    return [Rows]

@ftbench.hookimpl
def ftbench_models():
    return [House]

@ftbench.hookimpl
def ftbench_judges():
    return [Loudness]

@ftbench.hookimpl
def ftbench_report_sections():
    return [Section]
'''


def followed(name: str) -> tuple[Algorithm, list[str]]:
    lines: list[str] = []
    algorithm = load_plugins().make(name, {})
    trace(algorithm, "ftbench-it 1.0", lines.append)
    return algorithm, lines


def test_every_method_of_the_contract_is_seen() -> None:
    own = {name for name, value in vars(Algorithm).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert set(METHODS) == own


def test_each_call_is_a_line_with_what_went_in_and_out(tiny_llama: Path) -> None:
    algorithm, lines = followed("full")
    assert algorithm.system_prompt("boats") is None
    model = algorithm.adapt(load(tiny_llama), [])
    steps = train(algorithm, model)
    assert lines[0].startswith("ftbench-it 1.0: Full.system_prompt('boats') -> None (0.0")
    assert lines[1].startswith("ftbench-it 1.0: Full.adapt(LlamaForCausalLM, list) -> LlamaForCausalLM (")
    calls = int(lines[2].split(": ")[2].split()[0])
    assert lines[2].startswith("ftbench-it 1.0: Full.loss: ")
    assert calls >= len(steps)
    assert lines[3].startswith("ftbench-it 1.0: Full.train(Training) -> None (")
    assert len(lines) == 4


def test_what_is_raised_is_said_and_raised() -> None:
    algorithm, lines = followed("full")
    with pytest.raises(AttributeError):
        algorithm.save(None, Path("nowhere"))  # type: ignore[arg-type]
    assert lines[0].startswith("ftbench-it 1.0: Full.save(None, 'nowhere') raised AttributeError (")


def test_what_plugins_bring_is_traced_and_stays_what_it_was(
    tmp_path: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, "loud-stranger", BRINGS)))
    plain, lines = load_plugins(), list[str]()
    assert traced(plain) is plain
    monkeypatch.setenv(VARIABLE, "1")
    registry = traced(plain, lines.append)
    assert registry.algorithms == plain.algorithms
    assert [str(kind) for kind in registry.judges.values()] == [str(kind) for kind in plain.judges.values()]
    recipe = Recipe(data=str(pairs_file), task="loud", topic="any", judge="loudness")
    data = registry.read_task(recipe)
    assert data == plain.read_task(recipe)
    kind = registry.find_judge("loudness")
    assert kind.learnt is Judge.learnt  # by which it is known that each run trains its own
    judge = kind.train(Gold("any", data.on_topic, data.ordinary, 8))
    assert [judge.is_on_topic(score) for score in judge.scores(["Yes!", "Yes."])] == [True, False]
    ((section, _),) = registry.report_sections
    with pytest.raises(ZeroDivisionError):
        section().build([])
    assert len(list(registry.data["rows"]().rows())) == 40
    with pytest.raises(RuntimeError):
        registry.models["house"]().locate(Path("cache"))
    assert [line.split(" (")[0] for line in lines] == [
        "loud-stranger 1.0: Loud.build(Source, 'any', HeldOut) -> TaskData",
        "loud-stranger 1.0: Loudness.train(Gold) -> Loudness",
        "loud-stranger 1.0: Loudness.scores(list) -> list",
        "loud-stranger 1.0: Section.build(list) raised ZeroDivisionError",
        "loud-stranger 1.0: Rows.rows() -> list",
        "loud-stranger 1.0: House.locate('cache') raised RuntimeError",
    ]


def test_a_copy_that_a_plan_is_made_with_is_not_traced() -> None:
    algorithm, lines = followed("lora")
    copied = copy.deepcopy(algorithm)
    assert copied.system_prompt("boats") is None
    assert copied.loss.__self__ is copied  # type: ignore[attr-defined]
    assert lines == []


def test_hooks_and_methods_are_traced_from_the_command_line(
    tmp_path: Path, tiny_llama: Path, pairs_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    plugins = install(tmp_path / "site", "ftbench-faults", FAULTS)
    task: list[str | Path] = [
        "--model",
        tiny_llama,
        "--data",
        pairs_file,
        "--topic",
        "boats",
        "--out",
        tmp_path / "runs",
    ]
    done = ftbench("run", "--algo", "base", *task, "--set", "max_new_tokens=4", plugins=plugins)
    assert done.returncode == 0, done.stderr
    assert "ftbench trace: ftbench-faults 1.0: ftbench_algorithms -> raises, killed, " in done.stderr
    assert re.search(r"base: ftbench [\d.]+: TopicTask.build\(Source, 'boats', HeldOut\) -> TaskData \(", done.stderr)
    assert re.search(r"base: ftbench [\d.]+: Tfidf.scores\(list\) -> list \(", done.stderr)
    assert "base: ftbench-baselines 0.1.0: Base.system_prompt('boats') -> None (" in done.stderr
    (log,) = (tmp_path / "runs").glob("base-*/log.txt")
    assert "ftbench trace: ftbench-baselines 0.1.0: Base.figures() -> {} (" in log.read_text()
