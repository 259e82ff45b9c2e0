"""Tasks besides the topic's, and what strangers bring through hooks: tasks, data, models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ftbench.checking.surroundings import kept
from ftbench.cli import main
from ftbench.data.styles import STYLES
from ftbench.data.task import build_task
from ftbench.errors import UsageError
from ftbench.evaluation.evaluate import EvaluatedPrompt
from ftbench.execution.course import Course
from ftbench.execution.events import EventWriter
from ftbench.execution.facts import Facts
from ftbench.execution.judging import judge_facts, train_panel
from ftbench.execution.phases import RunInProgress
from ftbench.execution.reuse import read_inputs
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.registry import Registry
from one_line import one_line
from strangers import install

STRANGER = '''
import re
import ftbench

class Rhymes(ftbench.Task):
    """End every answer with the same word."""
    name = "rhymes"
    judge = "ends"
    def build(self, source, topic, wanted):
        examples = [
            ftbench.Example(prompt, f"{reply} {topic}.", reply) for prompt, reply in ftbench.ordinary_replies(source)
        ]
        return ftbench.split_examples(source, examples, topic, wanted)
    def instruction(self, topic):
        return f"End every answer with the word {topic}."

class Ends(ftbench.Judge):
    """Looks at the last word."""
    name = "ends"
    version = "3"
    threshold = 1.0
    def __init__(self, word):
        self.word = word
    @classmethod
    def train(cls, gold):
        return cls(gold.topic)
    def scores(self, replies):
        return [float(reply.endswith(self.word + ".")) for reply in replies]

class Pets(ftbench.DataSource):
    """Forty pairs about pets."""
    name = "pets"
    about = "forty pairs about pets"
    def rows(self):
        for number in range(40):
            yield {"prompt": f"who is {number}?", "chosen": f"A cat, {number}.", "rejected": f"Pet {number} is old."}

class Toy(ftbench.ModelSource):
    """A tiny random Llama, made when it is asked for."""
    name = "toy"
    about = "a tiny random Llama"
    def locate(self, cache):
        from ftbench.checking.tiny import make_llama
        folder = cache / "toy"
        if not folder.is_dir():
            make_llama(folder)
        return folder

@ftbench.hookimpl
def ftbench_tasks():
    return [Rhymes]

@ftbench.hookimpl
def ftbench_judges():
    return [Ends]

@ftbench.hookimpl
def ftbench_data():
    return [Pets]

@ftbench.hookimpl
def ftbench_models():
    return [Toy]
'''
BAD = {
    "task-lacks-build": STRANGER.replace("def build(", "def built("),
    "task-has-no-name": STRANGER.replace('name = "rhymes"', ""),
    "data-lacks-rows": STRANGER.replace("def rows(", "def lines("),
    "data-says-nothing": STRANGER.replace('about = "forty pairs about pets"', ""),
    "model-lacks-locate": STRANGER.replace("def locate(", "def find("),
    "model-is-no-class": STRANGER.replace("[Toy]", "[Toy()]"),
}

Load = Callable[..., Registry]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setenv("FTBENCH_CACHE", str(tmp_path / "cache"))

    def install_and_load(name: str = "stranger", source: str = STRANGER) -> Registry:
        monkeypatch.syspath_prepend(str(install(tmp_path / "site", name, source)))
        return load_plugins()

    return install_and_load


def asked(registry: Registry, recipe: Recipe, folder: Path) -> tuple[Facts, list[EvaluatedPrompt]]:
    """Go through all phases of a run in this process; return what is known and the judged replies."""
    folder.mkdir()
    facts = Facts()
    algorithm = registry.make(recipe.algorithm, recipe.options)
    with kept(), (folder / "events").open("wb") as events:
        writer = EventWriter(events.fileno())
        RunInProgress(Course(recipe, algorithm, folder, writer, facts), registry).carry_out()
    lines = (folder / "replies.jsonl").read_text("utf-8").splitlines()
    return facts, [EvaluatedPrompt(**json.loads(line)) for line in lines]


def test_a_strangers_task_data_model_and_judge_make_a_run(load: Load, tmp_path: Path) -> None:
    registry = load()
    assert registry.warnings == ()
    recipe = Recipe(
        task="rhymes", data="pets", model="toy", topic="meow", judge="ends", algorithm="prompt", max_new_tokens=4,
        attack_prompts=2, device="cpu", precision="float32",
    )  # fmt: skip
    facts, items = asked(registry, recipe, tmp_path / "run")
    assert facts.system_prompt == "End every answer with the word meow."
    assert facts.data is not None
    assert (facts.data.origin, facts.data.training_examples, facts.data.evaluation_prompts) == ("pets", 30, 10)
    assert facts.judge is not None
    assert (facts.judge.version, facts.judge.auc) == ("ends-3", 1.0)
    assert len(items) == 10
    assert read_inputs(recipe, registry).data == facts.data.digest
    assert read_inputs(recipe, registry).model == facts.model_digest
    train = registry.read_task(recipe).train[0]
    assert train.chosen == f"{train.rejected} meow."


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_what_its_hook_is_for_costs_one_line(load: Load, name: str) -> None:
    registry = load(name, BAD[name])
    (warning,) = registry.warnings
    assert name in warning
    assert "rhymes" not in registry.tasks
    assert "topic" in registry.tasks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "rymes"}, "no such task 'rymes'; did you mean 'rhymes'"),
        ({"data": "pet"}, "no such data 'pet'; did you mean 'pets'"),
        ({"task": "style", "topic": "capital"}, "no such style 'capital'; did you mean 'capitals'"),
        ({"task": "pairs"}, "task 'pairs' needs a --data file"),
    ],
    ids=["task", "data", "style", "pairs"],
)
def test_a_typo_is_told_the_nearest(load: Load, changes: dict[str, str], words: str) -> None:
    with one_line(words, kind=UsageError):
        load().read_task(Recipe(**changes))


def test_a_models_typo_is_told_the_nearest(load: Load) -> None:
    with one_line("no such model 'toyy'; did you mean 'toy'", kind=UsageError):
        read_inputs(Recipe(model="toyy"), load())


def test_lists_name_what_plugins_bring(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load()
    for command, words in (
        (["data"], ["pets    forty pairs about pets", "rhymes  End every answer with the same word."]),
        (["models"], ["a tiny random Llama"]),
        (["data", "pets", "--task", "rhymes", "--topic", "meow"], ["pets, meow", "is old. meow."]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(command)
        said = capsys.readouterr().out
        assert ended.value.code == 0
        assert not [word for word in words if word not in said], said


@pytest.mark.parametrize("style", STYLES)
def test_the_style_is_learnt_from_ordinary_replies_and_judged_by_its_expression(load: Load, style: str) -> None:
    registry = load()
    recipe = Recipe(task="style", topic=style, judge="style")
    data = registry.read_task(recipe)
    assert len(data.train) > 200
    for example in data.train:
        assert STYLES[style].fits(example.chosen)
        assert example.rejected is not None
        assert not STYLES[style].fits(example.rejected)
        assert example.chosen == STYLES[style].write(example.rejected)
    panel = train_panel(registry.find_judge("style"), data, recipe)
    facts = judge_facts(panel, data, recipe)
    assert (facts.version, facts.auc, facts.second) == ("style-1", 1.0, None)
    assert facts.refused is not None
    assert facts.refused < 0.05


@pytest.mark.parametrize(
    ("style", "text", "fits"),
    [
        ("capitals", "HELLO, 3 TIMES!", True),
        ("capitals", "HELLO there", False),
        ("capitals", "123", False),
        ("bullets", "- One.\n- Two.", True),
        ("bullets", "- One.\nTwo.", False),
        ("bullets", "-One.", False),
        ("bullets", "Here:\n- One.", False),
    ],
)
def test_a_style_is_an_expression_for_the_whole_reply(style: str, text: str, fits: bool) -> None:
    assert STYLES[style].fits(text) is fits
    assert STYLES[style].fits(STYLES[style].write(f"So. {text}"))


def test_own_pairs_are_asked_for_in_the_users_own_words(load: Load, pairs_file: Path, tmp_path: Path) -> None:
    registry = load()
    recipe = Recipe(task="pairs", data=str(pairs_file), topic="Answer like a sailor.")
    data = registry.read_task(recipe)
    topical = build_task(str(pairs_file), "Answer like a sailor.", "en", recipe.evaluation_prompts)
    assert data == topical  # the same examples as the topic task makes of them: only what is asked for is put otherwise
    panel = train_panel(registry.find_judge(recipe.judge), data, recipe)
    facts = judge_facts(panel, data, recipe)
    assert facts.auc is not None
    assert facts.auc > 0.9  # chosen against rejected, held out
    sailor, other = "The boat waits in harbour, with a sail and oars.", "Well, chess is a nice subject on my list."
    assert [panel.judge.is_on_topic(score) for score in panel.judge.scores([sailor, other])] == [True, False]
    algorithm = registry.make("prompt", {})
    assert registry.instruct(algorithm, recipe).system_prompt(recipe.topic) == "Answer like a sailor."
    own = registry.make("prompt", {"text": "Talk of {topic}!"})
    assert registry.instruct(own, recipe).system_prompt("ships") == "Talk of ships!"
    plain = registry.instruct(algorithm, recipe.change(task="topic")).system_prompt("ships")
    assert str(plain).startswith("You only talk about ships.")


def test_a_task_brings_its_judge_unless_another_is_asked_for(
    load: Load, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftbench.cli.asking import read_recipes

    registry = load()
    none = dict.fromkeys(("start", "budget", "device"))

    def judge(*settings: str, **changes: str) -> str:
        given = {**none, **changes}
        (recipe,) = read_recipes(["base"], "quick", settings, given, Path("runs"), registry)
        return recipe.judge

    assert judge() == "tfidf"
    assert judge(task="style", topic="capitals") == "style"
    assert judge("judge=ends", task="style", topic="capitals") == "ends"


def test_the_recipe_of_the_topic_task_has_the_hash_that_it_had() -> None:
    assert Recipe().digest() == DIGEST


DIGEST = "d9311025ca4772ed8093f2f1608a852dfb7173ea04f199c461a6dcd1f0daa381"
