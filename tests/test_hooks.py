"""Hooks besides algorithms and judges: a stranger's command and report section."""

import json
import re
from pathlib import Path

import pytest

from ftbench.cli import main
from ftbench.plugins import load_plugins
from made_results import make_run, store
from strangers import install

COMMANDS = '''
import click
import ftbench

@click.command()
@click.argument("words", nargs=-1)
def greet(words):
    """Greet politely."""
    if "badly" in words:
        raise ZeroDivisionError("no\\nmanners")
    if "wrongly" in words:
        raise ftbench.UsageError("greet whom?")
    click.echo("hello " + " ".join(words))

@click.command(name="run")
def other():
    """Take the place of a shipped command."""

@ftbench.hookimpl
def ftbench_commands():
    return [greet, other]
'''
SECTIONS = '''
import ftbench

class Counts(ftbench.ReportSection):
    """How many runs there are of each algorithm."""
    name = "counts"
    title = "Counts <b>"
    def build(self, runs):
        rows = [(run.result.recipe.algorithm, str(len(run.replies()))) for run in runs]
        return ftbench.ReportTable("Replies <i>of</i> each run.", ("algorithm", "replies"), tuple(rows))

class Fails(ftbench.ReportSection):
    """Raises."""
    name = "fails"
    title = "Never shown"
    def build(self, runs):
        return 1 / 0

class Empty(ftbench.ReportSection):
    """Has nothing to show."""
    name = "empty"
    title = "Never shown"
    def build(self, runs):
        return None

class Drawn(ftbench.ReportSection):
    """Draws tokens/s."""
    name = "drawn"
    title = "Drawn by a stranger"
    def build(self, runs):
        import plotly.graph_objects as go

        names = [run.result.recipe.algorithm for run in runs]
        bars = go.Figure(go.Bar(x=names, y=[run.result.measures.tokens_per_second for run in runs]))
        bars.update_layout(yaxis_title="tokens/s", template="plotly_dark")
        pie = {"data": [{"type": "pie", "labels": ["a", "b"], "values": [1, 2], "meta": {"series": "lora"}}]}
        about = 'Bars <i>a "run"'
        speed = ftbench.ReportChart("Speed <b>", about, bars, 300, "Of each run.")
        return ftbench.ReportTable(charts=(speed, ftbench.ReportChart("Pie", "Pie", pie)))

class Undrawn(ftbench.ReportSection):
    """Draws what plotly does not know."""
    name = "undrawn"
    title = "Never shown"
    def build(self, runs):
        figure = {"data": [{"type": "bars", "x": [1]}]}
        return ftbench.ReportTable(charts=(ftbench.ReportChart("Bars", "Bars", figure),))

class Html(ftbench.ReportSection):
    """Returns what is no table."""
    name = "html"
    title = "Never shown"
    def build(self, runs):
        return "<script>alert(1)</script>"

@ftbench.hookimpl
def ftbench_report_sections():
    return [Counts, Fails, Empty, Drawn, Undrawn, Html]
'''


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


@pytest.fixture
def polite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", "polite-stranger", COMMANDS)))


@pytest.mark.usefixtures("polite")
def test_a_strangers_command_is_listed_and_called(capsys: pytest.CaptureFixture[str]) -> None:
    taken = "warning: plugin polite-stranger: command 'run' is left out: ftbench has that name\n"
    assert call(capsys, "greet", "you", "all") == (0, "hello you all\n", taken)
    code, out, err = call(capsys, "--help")
    assert code == 0
    assert re.search(r"Commands of plugins:\n  greet  Greet politely.", out)
    assert err == taken
    assert "Run algorithms on a task" in out


@pytest.mark.usefixtures("polite")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["greet", "badly"], 1, "plugin polite-stranger 1.0, command 'greet': ZeroDivisionError: no manners"),
        (["greet", "wrongly"], 2, "ftbench: greet whom?"),
        (["greet", "--loud"], 2, "No such option"),
        (["gret"], 2, "did you mean 'greet'"),
    ],
    ids=["raises", "usage", "option", "typo"],
)
def test_what_goes_wrong_in_it_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    ended, _, err = call(capsys, *arguments)
    assert ended == code
    (line,) = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert said in line


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("brings-print", ("[greet, other]", "[print]"), "is not a click.Command"),
        ("says-nothing", ('    """Greet politely."""\n', ""), "has no docstring"),
    ],
)
def test_what_is_no_command_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: tuple[str, str], words: str
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path, name, COMMANDS.replace(*change))))
    registry = load_plugins()
    (warning,) = registry.warnings
    assert name in warning
    assert words in warning
    assert not registry.commands


def test_a_strangers_section_is_in_the_report_as_text_and_a_bad_one_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", "counting-stranger", SECTIONS)))
    store(make_run("lora"), tmp_path / "runs")
    code, _, err = call(capsys, "report", "--out", str(tmp_path / "runs"), "--to", str(tmp_path / "page.html"))
    assert code == 0
    page = (tmp_path / "page.html").read_text()
    body = page[page.index('<section id="plugin-counts">') :]
    assert "Counts &lt;b&gt;" in body
    assert "Replies &lt;i&gt;of&lt;/i&gt; each run." in body
    assert re.search(r"<tr><td>lora</td><td>\d+</td></tr>", body)
    assert '<a href="#plugin-counts">' in page
    assert "Never shown" not in page
    lines = err.splitlines()
    assert len(lines) == 3
    assert "plugin counting-stranger 1.0, Fails.build: ZeroDivisionError" in lines[0]
    assert "plugin counting-stranger 1.0, Undrawn.build: ValueError" in lines[1]
    assert "Html.build returned str" in lines[2]


def test_a_strangers_charts_are_drawn_as_the_pages_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", "counting-stranger", SECTIONS)))
    store(make_run("lora"), tmp_path / "runs")
    call(capsys, "report", "--out", str(tmp_path / "runs"), "--to", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert re.search(r'<div class="plot" id="plugin-drawn-0" style="height: 300px"', page)
    assert 'aria-label="Bars &lt;i&gt;a &#34;run&#34;"' in page
    assert "<b>Speed &lt;b&gt;</b>" in page
    assert '<p class="caption">Of each run.</p>' in page
    assert page.count("window.PlotlyConfig") <= 1
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    charts = json.loads(data)["charts"]
    bars, pie = charts["plugin-drawn-0"]["figure"], charts["plugin-drawn-1"]["figure"]
    assert bars["data"][0]["x"] == ["lora"]
    assert bars["layout"]["colorway"][0] == "var(--series-1)"
    assert "template" not in bars["layout"]  # it would bring a theme of its own
    assert pie["data"][0]["type"] == "pie"
    assert [key for key, chart in charts.items() if chart["foreign"]] == ["plugin-drawn-0", "plugin-drawn-1"]


def test_plugins_lists_what_each_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", "counting-stranger", SECTIONS, needs="ftbench>=0.1")))
    _, out, _ = call(capsys, "plugins", "--json")
    (row,) = [row for row in json.loads(out) if row["name"] == "counting-stranger"]
    assert row["report_sections"] == ["counts", "fails", "empty", "drawn", "undrawn", "html"]
    assert row["requires"] == ">=0.1"
    _, out, _ = call(capsys, "plugins")
    assert re.search(r"counting-stranger +1.0 +>=0.1 +ftbench_report_sections +counts fails empty drawn", out)
