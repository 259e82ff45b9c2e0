"""Every hook as the documentation shows it, used as the core uses it: one that is added needs an example and a test."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ftbench import hookspecs
from ftbench.data.sources import read_source
from ftbench.data.task import build_task
from ftbench.errors import UsageError
from ftbench.execution.judging import train_panel
from ftbench.models.resolve import resolve_model
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.registry import Registry
from ftbench.results.store import read_run
from made_results import make_run, store
from strangers import ftbench_here, install
from tiny import load, train

HOOKS = [name for name in vars(hookspecs) if name.startswith("ftbench_")]
PAGE = (Path(__file__).parents[1] / "docs" / "hooks.md").read_text("utf-8")
SHOWN = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
"""The plugin that the documentation shows, with every hook."""


@dataclass(frozen=True)
class House:
    """Where the plugin is installed, and what the exercises of its hooks use."""

    registry: Registry
    model: Path
    pairs: Path


EXERCISES: dict[str, Callable[[House], None]] = {}
"""For each hook what the core does with what it brings."""


def exercise(called: Callable[[House], None]) -> None:
    EXERCISES[f"ftbench_{called.__name__}"] = called


@exercise
def algorithms(house: House) -> None:
    algorithm = house.registry.make("brisk", {})
    assert algorithm.config.learning_rate == 5e-4
    first, *_, last = train(algorithm, load(house.model), tokens=400)
    assert last.loss < first.loss


@exercise
def tasks(house: House) -> None:
    data = house.registry.read_task(Recipe(data=str(house.pairs), task="brief", topic="any"))
    assert {example.chosen for example in data.train} == {"Yes, it is."}
    assert house.registry.find_task("brief").instruction("any") == "Answer in one sentence."


@exercise
def judges(house: House) -> None:
    recipe = Recipe(data=str(house.pairs), topic="boats", judge="one-sentence")
    panel = train_panel(house.registry.find_judge(recipe.judge), build_task(recipe.data, "boats", "en", 8), recipe)
    said = panel.verdicts(["The owner knows how old it is.", "The owner knows. You may ask."])
    assert [verdict.score for verdict in said] == [1.0, 0.0]


@exercise
def data(house: House) -> None:
    pairs = read_source("pets", "en", house.registry.data).content
    assert isinstance(pairs, tuple)
    assert len(pairs) == 40


@exercise
def models(house: House) -> None:
    assert resolve_model("house-llama", None, house.registry.models).folder.samefile(house.model)


@exercise
def commands(house: House) -> None:
    store(make_run("lora"), house.pairs.parent / "runs")
    counted = ftbench_here("count", cwd=house.pairs.parent)
    assert (counted.returncode, counted.stdout) == (0, "1\n")


@exercise
def report_sections(house: House) -> None:
    (section,) = [section for section, _ in house.registry.report_sections if section.name == "replies"]
    run = read_run(store(make_run("lora"), house.pairs.parent / "runs"))
    table = section().build([run])
    assert table is not None
    assert table.rows == (("lora", str(len(run.replies()))),)


@pytest.fixture
def house(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> House:
    """The plugin, installed; without the hook that the test names, if it names one."""
    without: str = getattr(request, "param", "")
    source = SHOWN.replace(f"@ftbench.hookimpl\ndef {without}()", f"def {without}()") if without else SHOWN
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", f"house-stranger-{without[8:]}", source)))
    (tmp_path / "llama").symlink_to(tiny_llama)
    monkeypatch.setenv("HOUSE_MODELS", str(tmp_path))
    registry = load_plugins()
    assert registry.warnings == ()
    (plugin,) = [plugin for plugin in registry.plugins if plugin.name.startswith("house-stranger")]
    assert set(plugin.hooks) == set(HOOKS) - {without}
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}?", "chosen": f"A boat, {n}.", "rejected": "Yes, it is. I asked."} for n in range(40)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return House(registry, tmp_path / "llama", pairs)


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_hook_brings_is_used_as_the_documentation_shows_it(hook: str, house: House) -> None:
    EXERCISES[hook](house)


@pytest.mark.parametrize(("house", "hook"), [(hook, hook) for hook in HOOKS], indirect=["house"], ids=HOOKS)
def test_each_exercise_fails_without_its_hook(hook: str, house: House) -> None:
    with pytest.raises((UsageError, AssertionError, ValueError)):
        EXERCISES[hook](house)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_says_what_it_takes_and_where_it_shows(hook: str) -> None:
    text = getattr(hookspecs, hook).__doc__
    assert text.startswith("Return the ")
    assert "`" in text
