"""The documentation's generated pages say what there is; Sphinx builds all of it in `.ci/run`."""

import re
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

from command_lines import parse
from ftbench import __all__ as given
from ftbench.algorithm import Algorithm, summary
from ftbench.cli.asking import read_recipes
from ftbench.data.styles import STYLES
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.registry import Plugin
from ftbench.results.columns import COLUMNS
from ftbench.serving.limits import Limits
from made_module import load

DOCS = Path(__file__).parents[1] / "docs"
GENERATE: ModuleType = load(DOCS / "generate.py")
PAGES: dict[str, str] = GENERATE.pages()
ALGORITHMS = [kind for plugin in load_plugins().plugins for kind in plugin.algorithms]


def commands() -> list[str]:
    texts = [path.read_text("utf-8") for path in DOCS.glob("*.md")] + list(PAGES.values())
    blocks = [block for text in texts for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line[line.index("ftbench ") :] for line in lines if re.search(r"(^|run )ftbench ", line)})


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_documentation_parse(line: str) -> None:
    parse(line)


@pytest.mark.parametrize("kind", ALGORITHMS, ids=lambda kind: kind.name)
def test_each_algorithm_has_a_page_with_every_option_described(kind: type[Algorithm]) -> None:
    page = PAGES[f"algorithms/{kind.name}.md"]
    assert summary(kind).split(" (")[0] in page
    for name in kind.Config.model_fields:
        if kind.needs == "nothing" and name == "learning_rate":
            continue
        (row,) = re.findall(rf"^\| `{name}` \|.*$", page, re.MULTILINE)
        assert all(cell.strip() for cell in row.strip("|").split(" | ")), row


TRAINED = [kind for kind in ALGORITHMS if kind.needs != "nothing"]


@pytest.mark.parametrize("kind", [kind for kind in ALGORITHMS if kind not in TRAINED], ids=lambda kind: kind.name)
def test_who_trains_nothing_says_so_and_whose_method_it_is(kind: type[Algorithm]) -> None:
    page = PAGES[f"algorithms/{kind.name}.md"]
    assert "## The loss\n\nNothing is trained" in page
    assert "https://arxiv.org/abs/" in page or "nobody's method" in page


@pytest.mark.parametrize("kind", TRAINED, ids=lambda kind: kind.name)
def test_each_trained_algorithms_page_has_its_paper_and_its_loss(kind: type[Algorithm]) -> None:
    page = PAGES[f"algorithms/{kind.name}.md"]
    papers = re.findall(r"\[arXiv:(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)", page)
    assert papers or "nobody's method" in page
    for variant in kind.variants:
        assert re.search(rf"^- `{variant}`: [^`]*\(https://arxiv\.org/abs/", page, re.MULTILINE), variant
    (loss,) = re.findall(r"^## The loss\n\n(.*?)\n\n## ", page, re.DOTALL | re.MULTILINE)
    assert re.search(r"\blog\b|\bexp\(|log-likelihood", loss), loss


def test_a_loss_that_a_docstring_does_not_tell_is_not_made_up() -> None:
    class Own(Algorithm):
        """Trains as it likes."""

        name = "own"
        own_trainer = True

    plugin = Plugin("ftbench-own", "1", ())
    assert "## The loss\n\n\n" in GENERATE.algorithm_page(Own, plugin)
    Own.__doc__ = "Trains as it likes.\n\n    Loss:\n        Its own (arXiv:2305.18290).\n"
    page = GENERATE.algorithm_page(Own, plugin)
    link = "[arXiv:2305.18290](https://arxiv.org/abs/2305.18290)"
    assert "# own\n\nTrains as it likes.\n\n```sh" in page
    assert f"## The loss\n\nIts own ({link}).\n\n## " in page


def test_the_page_of_tasks_has_every_task_and_style_and_its_commands_give_what_they_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs_file: Path
) -> None:
    page = (DOCS / "tasks.md").read_text("utf-8")
    registry = load_plugins()
    shipped = registry.plugins[0].tasks
    assert len(shipped) >= 3
    for task in shipped:
        assert f"`{task.name}`, judged by `{task.judge}`\n: {(task.__doc__ or '').strip()}\n" in PAGES["parts/tasks.md"]
    assert all(f"`{style}`" in page for style in STYLES)
    ((name, recipe),) = re.findall(r"toml\n:caption: \"`(\S+)`\"\n\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(recipe, "utf-8")
    Path("pairs.jsonl").write_bytes(pairs_file.read_bytes())
    found: list[tuple[str, str, list[str]]] = []
    for line in re.findall(r"ftbench run [^`#\n]+", page):
        given = parse(line)
        changes = {key: given[key] for key in given if key in Recipe.model_fields or key == "budget"}
        (made,) = read_recipes(["base"], given["recipe_name"], given["settings"], changes, Path("runs"), registry)
        taught = registry.read_task(made).train[0].chosen
        fits = [style for style, known in STYLES.items() if known.fits(taught)]
        found.append((made.task, made.judge, fits))
    in_capitals, in_bullets = ("style", "style", ["capitals"]), ("style", "style", ["bullets"])
    assert found == [("topic", "tfidf", []), in_capitals, in_bullets, ("pairs", "tfidf", []), in_capitals]


def test_each_column_hook_command_and_import_is_told_of() -> None:
    for column in COLUMNS:
        told = f"| `{column.key}` | {column.better or '-'} | {column.about.split('`')[0]}"
        assert told in PAGES["parts/columns.md"]
    assert all(column.about for column in COLUMNS)
    assert all(f"`{name}()`" in PAGES["parts/hooks.md"] for name in GENERATE.hooks())
    assert len(GENERATE.hooks()) >= 7
    commands_told = re.findall(r"^## ftbench \w+\n\n```text\nUsage: ftbench ", PAGES["commands.md"], re.MULTILINE)
    assert len(commands_told) >= 16
    assert sorted(name for names in GENERATE.SUBJECTS.values() for name in names) == sorted(given)


def test_what_is_no_longer_generated_goes(tmp_path: Path) -> None:
    old = tmp_path / "algorithms" / "gone.md"
    old.parent.mkdir()
    old.write_text("# gone")
    GENERATE.write(tmp_path)
    assert not old.exists()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")} == set(PAGES)


def test_the_page_on_serving_has_every_limit() -> None:
    rows = [line for line in (DOCS / "serving.md").read_text("utf-8").splitlines() if line.startswith("| ")]
    cells = {row.split(" | ")[1] for row in rows}
    told = {"body_bytes": "{:,} bytes", "body_seconds": "{:g} s", "seconds": "{:g}"}
    for name, value in asdict(Limits()).items():
        assert told.get(name, "{:,}").format(value) in cells, name
