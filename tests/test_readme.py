import math
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from command_lines import parse
from ftbench.plugins import load_plugins
from ftbench.training.logprobs import CompletionLogProbs, SequenceLogProbs
from made_module import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line[line.index("ftbench") :] for line in lines if re.search(r"(^|run )ftbench ", line)]


def test_readme_opens_with_its_two_commands() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert blocks[0] == 'pip install "pdm[locked]" && pdm install && pdm run ftbench run --algo lora\n'
    assert blocks[1] == 'pip install "pdm[locked]" && pdm install && pdm run test\n'
    assert README.index("pip install") < 40


TOLD = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = ("docs/_build", "generated/")
"""What is there once the documentation is built, which looks at links to it itself."""


def places(text: str) -> list[str]:
    """What a text links to, from its own folder, and the repository's files that it names between backticks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link]
    named = " ".join(re.findall(r"`([^`\n]+)`", text))
    tops = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and path.name != "runs")
    files = [f"/{path}" for path in re.findall(rf"(?<!\S)((?:{tops})/[\w./-]*)", named)]
    return [place for place in [*links, *files] if place and not place.removeprefix("/").startswith(MADE)]


@pytest.mark.parametrize("path", TOLD, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documentation_links_to_or_names_are_there(path: Path) -> None:
    for place in places(path.read_text("utf-8")):
        there = ROOT / place[1:] if place.startswith("/") else path.parent / place
        assert there.exists(), place


def test_links_and_names_of_files_are_found() -> None:
    found = places("[a](docs/b.md#c) [d](#e) [f](https://g.h) `docs/i.md` `python tests/j.py` `runs/k` `/docs/l`")
    assert found == ["docs/b.md", "/docs/i.md", "/tests/j.py"]
    assert "/tests/test_crossed.py" in places(README)


def test_figures_in_the_readme_are_the_recorded_ones() -> None:
    assert load(ROOT / "benchmarks" / "readme.py").filled(README) == README


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_readme_parse(line: str) -> None:
    parse(line)


def test_example_plugin_loads_and_has_the_loss_it_names() -> None:
    import sys

    import torch

    sys.modules["ftbench_unlikely"] = load(ROOT / "tests" / "example_plugin.py")
    try:
        registry = load_plugins([EntryPoint("unlikely", "ftbench_unlikely", "ftbench")])
    finally:
        del sys.modules["ftbench_unlikely"]
    assert registry.warnings == ()
    kind = registry.find("unlikely")
    lengths = torch.tensor([2, 4])
    chosen = SequenceLogProbs(torch.tensor([-2.0, -4.0]), lengths)
    logprobs = CompletionLogProbs(chosen, SequenceLogProbs(torch.tensor([0.25, 0.0625]).log(), lengths))
    loss = kind(kind.Config()).loss(logprobs).item()
    expected = 6 / 6 + 0.5 * -(math.log(1 - 0.25**0.5) + math.log(1 - 0.0625**0.25)) / 2
    assert loss == pytest.approx(expected, rel=1e-6)
