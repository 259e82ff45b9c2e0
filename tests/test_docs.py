"""The documentation's generated pages say what there is; Sphinx builds all of it in `.ci/run`."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from command_lines import parse
from ftbench import __all__ as given
from ftbench.algorithm import Algorithm
from ftbench.plugins import load_plugins
from ftbench.results.columns import COLUMNS
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
    assert (kind.__doc__ or "").split(" (")[0] in page
    for name in kind.Config.model_fields:
        if kind.needs == "nothing" and name == "learning_rate":
            continue
        (row,) = re.findall(rf"^\| `{name}` \|.*$", page, re.MULTILINE)
        assert all(cell.strip() for cell in row.strip("|").split(" | ")), row


def test_arxiv_numbers_are_links() -> None:
    assert "[arXiv:2305.18290](https://arxiv.org/abs/2305.18290)" in PAGES["algorithms/dpo.md"]


def test_each_column_hook_command_and_import_is_told_of() -> None:
    assert all(f"| `{column.key}` | {column.about.split('`')[0]}" in PAGES["parts/columns.md"] for column in COLUMNS)
    assert all(column.about for column in COLUMNS)
    assert all(f"`{name}()`" in PAGES["parts/hooks.md"] for name in GENERATE.hooks())
    assert len(GENERATE.hooks()) >= 7
    told = re.findall(r"^## ftbench \w+\n\n```text\nUsage: ftbench ", PAGES["commands.md"], re.MULTILINE)
    assert len(told) >= 16
    assert sorted(name for names in GENERATE.SUBJECTS.values() for name in names) == sorted(given)


def test_what_is_no_longer_generated_goes(tmp_path: Path) -> None:
    old = tmp_path / "algorithms" / "gone.md"
    old.parent.mkdir()
    old.write_text("# gone")
    GENERATE.write(tmp_path)
    assert not old.exists()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.md")} == set(PAGES)
