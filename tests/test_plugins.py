"""A plugin that does not work costs one line, and nothing else."""

import ast
import json
import tomllib
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path

import pluggy
import pytest
from packaging.requirements import Requirement

import ftbench as public
from ftbench import hookspecs
from ftbench.plugins import GROUP, load_plugins
from ftbench.registry import Registry
from ftbench.scaffold.write import next_version
from strangers import GOOD, ftbench, install

ROOT = Path(__file__).parents[1]
PLUGINS = sorted((ROOT / "plugins").glob("*/pyproject.toml"))
SHIPPED = {"base", "prompt", "full", "lora"}
BAD = {
    "raises-on-import": "raise RuntimeError('no libfoo.so\\nhere')",
    "exits-on-import": "import sys\nsys.exit(3)",
    "has-no-hook": "import ftbench\n\ndef ftbench_algorithms():\n    return []",
    "misspells-its-hook": "import ftbench\n\n@ftbench.hookimpl\ndef ftbench_algoritms():\n    return []",
    "brings-no-algorithm": "import ftbench\n\n@ftbench.hookimpl\ndef ftbench_algorithms():\n    return [dict]",
    "forgets-to-return": "import ftbench\n\n@ftbench.hookimpl\ndef ftbench_algorithms():\n    [ftbench.Algorithm]",
    "raises-in-its-hook": "import ftbench\n\n@ftbench.hookimpl\ndef ftbench_algorithms():\n    return 1 / 0",
    "needs-a-newer-ftbench": "from ftbench import Quantiser",
    "has-a-syntax-error": "def",
    "claims-lora": GOOD.replace('"good"', '"lora"'),
    "is-called-all": GOOD.replace('"good"', '"all"'),
    "has-no-name": GOOD.replace('name = "good"', ""),
    "has-a-path-for-a-name": GOOD.replace('"good"', '"../good"'),
    "has-a-foreign-config": GOOD.replace('name = "good"', 'name = "good2"\n    Config = dict'),
    "misspells-its-needs": GOOD.replace('name = "good"', 'name = "good3"\n    needs = "preference"'),
}

Load = Callable[[dict[str, str]], Registry]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Install distributions and load all plugins in this process."""

    def install_and_load(sources: dict[str, str]) -> Registry:
        for name, source in sources.items():
            install(tmp_path / "site", name, source)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        return load_plugins()

    return install_and_load


@pytest.mark.parametrize("name", BAD)
def test_bad_plugin_costs_one_line_that_names_its_distribution(load: Load, name: str) -> None:
    registry = load({name: BAD[name], "good-stranger": GOOD})
    assert len(registry.warnings) == 1, registry.warnings
    assert name in registry.warnings[0]
    assert "\n" not in registry.warnings[0]
    assert registry.algorithms.keys() >= SHIPPED | {"good"}
    assert registry.plugin_of("lora").name == "ftbench-lora"


def test_good_stranger_is_listed_with_its_version_and_hook(load: Load) -> None:
    plugin = load({"good-stranger": GOOD}).plugin_of("good")
    assert (plugin.name, plugin.version, plugin.hooks) == ("good-stranger", "1.0", ("ftbench_algorithms",))


@pytest.mark.parametrize(
    ("needs", "shown"),
    [
        ("ftbench", ""),
        ("ftbench>=0.1", ">=0.1"),
        ("FTBench <99,>=0.0.1", "<99,>=0.0.1"),
        ("ftbench>=99; extra == 'test'", ""),
        ("ftbench-lora>=99", ""),
    ],
)
def test_a_plugin_for_this_ftbench_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: str, shown: str
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, "good-stranger", GOOD, needs=needs)))
    registry = load_plugins()
    assert registry.warnings == ()
    assert registry.plugin_of("good").requires == shown


@pytest.mark.parametrize("needs", ["ftbench>=99", "ftbench<0.1", "ftbench==0.0.1"])
def test_a_plugin_for_another_ftbench_is_left_out_with_its_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: str
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, "good-stranger", "1 / 0", needs=needs)))  # not even imported
    (warning,) = load_plugins().warnings
    assert warning.startswith(
        f"plugin good-stranger is left out: it is made for {needs}, and this is {version('ftbench')};"
    )


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.parent.name)
def test_a_shipped_plugin_says_which_ftbench_it_is_made_for_as_a_new_one_does(path: Path) -> None:
    core = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    own = tomllib.loads(path.read_text("utf-8"))["project"]
    (need,) = [need for need in map(Requirement, own["dependencies"]) if need.name == GROUP]
    bounds = {bound.operator: bound.version for bound in need.specifier}
    assert bounds.keys() == {">=", "<"}
    assert bounds["<"] == next_version(core["version"])
    assert need.specifier.contains(core["version"])


def test_there_are_shipped_plugins() -> None:
    assert {path.parent.name for path in PLUGINS} >= {"ftbench-baselines", "ftbench-full", "ftbench-lora"}


def test_shipped_plugins_come_through_entry_points_alone() -> None:
    assert not load_plugins([]).algorithms
    registry = load_plugins([entry for entry in entry_points(group=GROUP) if entry.dist and "lora" in entry.dist.name])
    assert set(registry.algorithms) == {"lora"}


def test_all_bad_plugins_together_leave_the_command_line_whole(tmp_path: Path) -> None:
    for name, source in {**BAD, "good-stranger": GOOD}.items():
        install(tmp_path / "site", name, source)
    done = ftbench("algos", "--json", plugins=tmp_path / "site")
    assert done.returncode == 0
    assert {row["name"] for row in json.loads(done.stdout)} >= SHIPPED | {"good"}
    lines = done.stderr.splitlines()
    assert len(lines) == len(BAD), done.stderr
    for name in BAD:
        assert sum(name in line for line in lines) == 1


def test_every_hook_is_documented() -> None:
    manager = pluggy.PluginManager("ftbench")
    manager.add_hookspecs(hookspecs)
    hooks = [name for name in vars(hookspecs) if name.startswith("ftbench_")]
    assert hooks
    for name in hooks:
        assert hasattr(manager.hook, name)
        assert getattr(hookspecs, name).__doc__


def test_everything_that_a_plugin_author_imports_is_there_and_documented() -> None:
    for name in public.__all__:
        assert getattr(public, name).__doc__, name


def test_core_names_no_shipped_algorithm_but_the_baseline() -> None:
    # "prompt" is also a field of the data.
    names = set(load_plugins().algorithms) - {"base", "prompt"}
    core = Path(hookspecs.__file__).parent
    hits = [
        f"{path.relative_to(core)}:{node.lineno}: {node.value!r}"
        for path in core.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
    assert not hits
