"""The report: one file that holds every run, fetches nothing, and takes what users wrote as text."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest

from browser import FLAGS, browser, browser_path
from ftbench.cli import main
from ftbench.evaluation.statistics import Measured
from ftbench.files import write_jsonl, write_text
from ftbench.results.columns import COLUMNS
from ftbench.results.report import page as page_module
from ftbench.results.report.charts import pareto_front
from ftbench.results.report.course import thinned
from ftbench.results.report.lines import build_views
from ftbench.results.report.page import Limits, build_page
from ftbench.results.result import StartFacts
from ftbench.results.rows import Asked, build_groups
from ftbench.results.store import METRICS, REPLIES, Run, read_runs
from made_results import make_run, store
from made_store import PROMPTS, SKILL, make_store

QUICK = Path(__file__).parents[1] / "benchmarks" / "quick"
HOSTILE = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)> & \u2028 <b>bold</b> {{ 7*7 }}"


class Elements(HTMLParser):
    """The elements of a page with their attributes, its script elements' texts, and what is read of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.shown = ""
        self._within: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._within = tag
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._within:
            self._within = None

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts[-1] += data
        elif self._within is None:
            self.shown += data


@dataclass
class Page:
    """A page as a test looks at it."""

    text: str
    elements: Elements = field(init=False)
    data: Any = field(init=False)

    def __post_init__(self) -> None:
        self.elements = Elements(self.text)
        found = re.search(r'<script type="application/json" id="data">(.*?)</script>', self.text, re.DOTALL)
        assert found
        self.data = json.loads(found[1], parse_constant=pytest.fail)

    @property
    def shown(self) -> str:
        return " ".join(self.elements.shown.split())

    def ids(self) -> set[str]:
        return {attributes["id"] or "" for _, attributes in self.elements.found if "id" in attributes}

    def sections(self) -> set[str]:
        return {name.split("-", 2)[-1] for name in self.ids() if re.fullmatch(r"group-\d+-[a-z-]+", name)}


def made(runs: list[Run], asked: Asked | None = None) -> Page:
    return Page(build_page(sorted(runs, key=lambda run: run.result.started), asked))


@pytest.fixture(scope="module")
def rich_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    out = tmp_path_factory.mktemp("rich")
    make_store(out)
    make_store(out, seeds=1, budgets=(2**31,), topic="gardening")
    return read_runs(out)[0]


@pytest.fixture(scope="module")
def rich(rich_runs: list[Run]) -> Page:
    return made(rich_runs)


@pytest.fixture(scope="module")
def quick() -> Page:
    return made(read_runs(QUICK)[0])


def figures(page: Page, key: str) -> list[Any]:
    return [chart["figure"] for name, chart in page.data["charts"].items() if re.fullmatch(rf"group-1-{key}-\d+", name)]


def names_of(figure: Any) -> set[str]:
    return {trace["meta"]["series"] for trace in figure["data"] if "series" in trace.get("meta", {})}


def test_rich_store_has_every_section(rich: Page) -> None:
    assert rich.sections() >= {"table", "trade-offs", "intervals", "budgets", "memory", "midway", "losses"}
    assert rich.ids() >= {"replies", "columns", "reading", "origin"}
    assert len(figures(rich, "trade-offs")) == 2
    assert len(figures(rich, "intervals")) == 3
    assert len(figures(rich, "midway")) == 2
    assert len(figures(rich, "losses")) == len(SKILL) - 1


def test_recorded_runs_of_an_older_version_have_all_that_they_hold(quick: Page) -> None:
    assert quick.sections() == {"table", "sheet", "trade-offs", "intervals", "memory", "losses"}
    algorithms = {run.result.recipe.algorithm for run in read_runs(QUICK)[0]}
    for figure in figures(quick, "intervals"):
        assert names_of(figure) == algorithms
    (replies,) = quick.data["replies"]
    assert {column["label"] for column in replies["columns"]} == algorithms
    assert replies["columns"][0]["label"] == "base"
    assert len(replies["cards"]) == 64
    assert all(len(card["replies"]) == len(algorithms) for card in replies["cards"])


@pytest.mark.parametrize("page", ["quick", "rich"])
def test_nothing_is_fetched(page: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(page).elements.found
    for tag, attributes in found:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    policies = [attributes["content"] for tag, attributes in found if tag == "meta" and "http-equiv" in attributes]
    assert len(policies) == 1
    assert "default-src 'none'" in (policies[0] or "")
    assert "script-src 'sha256-" in (policies[0] or "")


def test_same_runs_make_the_same_page(rich_runs: list[Run], rich: Page) -> None:
    assert made(rich_runs).text == rich.text


def test_groups_stand_apart_with_what_sets_them_apart(rich: Page) -> None:
    assert "Group 1 of 2" in rich.shown
    assert "Group 2 of 2" in rich.shown
    for topic in ("'trains'", "'gardening'"):
        assert rich.shown.count(topic) == 1
    assert "2 groups stand apart" in rich.shown
    series = names_of(figures(rich, "intervals")[0])
    assert series == set(SKILL)


def test_a_series_looks_the_same_in_every_chart_of_every_group(rich: Page) -> None:
    looks: dict[str, set[tuple[str, str]]] = {}
    for chart in rich.data["charts"].values():
        for trace in chart["figure"]["data"]:
            if "series" in trace.get("meta", {}):
                mark = trace["marker"]
                looks.setdefault(trace["meta"]["series"], set()).add(
                    (mark["color"], mark["symbol"].removesuffix("-open"))
                )
    assert set(looks) == set(SKILL)
    assert all(len(found) == 1 for found in looks.values())
    assert len({next(iter(found)) for found in looks.values()}) == len(SKILL)


def test_series_are_told_apart_beyond_the_colours_there_are() -> None:
    groups = build_groups([make_run(f"a{number}") for number in range(50)])
    marks = [line.mark for line in build_views(groups)[0].lines]
    assert len({(mark.colour, mark.symbol) for mark in marks}) == 50


def test_options_and_starts_name_what_would_have_one_name() -> None:
    start = StartFacts(run="lora-s0-1", algorithm="lora", recipe_digest="0", started="2026", tokens=5)
    runs = [
        make_run("lora", options={"rank": 8, "alpha": 4.0}),
        make_run("lora", options={"rank": 16, "alpha": 4.0}),
        make_run("dpo", options={"adapter_options": {"rank": 8}}),
        make_run("dpo", options={"adapter_options": {"rank": 8}}, start="/runs/lora", facts={"start": start}),
        make_run("orpo", options={"settings": "x" * 50}),
        make_run("orpo", options={"settings": "y" * 50}),
        make_run("full"),
    ]
    lines = build_views(build_groups(runs))[0].lines
    assert {line.label for line in lines} == {
        "lora rank=8", "lora rank=16", "dpo #1", "dpo from=lora", "orpo #1", "orpo #2", "full",
    }  # fmt: skip


def test_budget_sweep_says_what_became_of_each_algorithm_under_each(rich: Page) -> None:
    (figure,) = figures(rich, "budgets")
    lines = {trace["meta"]["series"]: trace["x"] for trace in figure["data"]}
    assert lines["lora"] == [2**30, 2**31]
    assert lines["full"] == [2**31]
    assert "out-of-memory" in rich.shown
    assert "a budget of 2.2GiB should do" in rich.shown


def test_one_budget_or_none_has_no_sweep() -> None:
    for budget in (None, 2**30):
        page = made([make_run("lora", memory_budget=budget), make_run("dpo", memory_budget=budget)])
        assert "budgets" not in page.sections()


def test_what_did_not_fit_is_drawn_as_predicted(rich: Page) -> None:
    (figure,) = figures(rich, "memory")
    predicted = [trace for trace in figure["data"] if "pattern" in trace.get("marker", {})]
    assert {label for trace in predicted for label in trace["y"]} == {"full, 1 GiB"}


def test_one_run_without_replies_or_steps_is_a_page() -> None:
    page = made([make_run("lora")])
    assert "1 row from 1 run," in page.shown
    assert "replies" not in page.ids()
    assert "losses" not in page.sections()
    assert not any(attributes.get("class") == "tiles" for _, attributes in page.elements.found)


@pytest.mark.parametrize("status", ["failed", "skipped", "timed-out", "out-of-memory"])
def test_rows_that_did_not_end_well_stand_in_the_table_with_the_reason(status: Any) -> None:
    page = made([make_run("lora"), make_run("dpo", status=status, reason="the moon stood wrong", phase="train")])
    assert status in page.shown
    assert "the moon stood wrong" in page.shown
    alone = made([make_run("dpo", status=status, reason="the moon stood wrong")])
    assert "the moon stood wrong" in alone.shown
    assert not alone.data["charts"]


def test_figures_that_are_no_numbers_are_left_out() -> None:
    nan = Measured(mean=float("nan"), low=float("nan"), high=float("nan"))
    page = made([make_run("lora", measures={"adherence": nan, "forgetting": nan}), make_run("dpo")])
    assert names_of(figures(page, "intervals")[0]) == {"dpo"}


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    plain = store(make_run("lora"), tmp_path, "lora")
    rows = [json.loads(line) for line in (plain / REPLIES).read_text("utf-8").splitlines()]
    for row in rows:
        row |= {"prompt": f"{HOSTILE} {row['prompt']}", "reply": HOSTILE, "base_reply": HOSTILE}
    write_jsonl(plain / REPLIES, rows)
    write_jsonl(plain / METRICS, [{"step": n, "stage": HOSTILE, "loss": 2.0, "tokens": n} for n in (1, 2)])
    store(make_run(f"peft:{HOSTILE}", options={"name": HOSTILE}, data=HOSTILE), tmp_path, "hostile")
    store(make_run("dpo", status="failed", reason=HOSTILE, data=HOSTILE), tmp_path, "failed")
    page = made(read_runs(tmp_path)[0])
    tags = [tag for tag, _ in page.elements.found]
    assert tags.count("script") == 4
    assert "img" not in tags
    assert "</script><script>alert(1)</script>" in page.shown
    assert "{{ 7*7 }}" in page.shown
    assert HOSTILE in [reply[2] for card in page.data["replies"][0]["cards"] for reply in card["replies"]]
    for chart in page.data["charts"].values():
        for trace in chart["figure"]["data"]:
            texts = [trace.get("name", ""), *trace.get("hovertext", []), *map(str, trace.get("y", []))]
            assert not any("<img" in text or "<script" in text for text in texts), texts


def test_pareto_front_is_what_no_row_beats() -> None:
    def run(name: str, adherence: float, mib: int, speed: float) -> Run:
        changes = {"peak_memory_bytes": mib * 2**20, "tokens_per_second": speed, "training_sequences": 9}
        return make_run(name, adherence=adherence, measures=changes)

    runs = [run("a", 0.9, 900, 10), run("b", 0.5, 300, 40), run("c", 0.4, 400, 30), run("d", 0.9, 900, 9)]
    lines = build_views(build_groups(runs))[0].lines
    assert [line.label for line in pareto_front(lines, "peak_memory_bytes")] == ["b", "a", "d"]
    assert [line.label for line in pareto_front(lines, "tokens_per_second")] == ["b", "a"]


def test_curves_are_means_over_stretches() -> None:
    curve = [(float(x), float(x % 2)) for x in range(1, 101)]
    assert thinned(curve, 0) == curve
    thin = thinned(curve, 10.0)
    assert len(thin) == 10
    assert (thin[0], thin[-1]) == ((5.5, 0.5), (95.5, 0.5))  # the last point is none of its own
    assert thinned([], 10.0) == []


def test_stages_are_drawn_apart(quick: Page) -> None:
    stages = [len(figure["data"]) for figure in figures(quick, "losses")]
    assert sorted(set(stages)) == [1, 2]
    longest = max(len(trace["x"]) for figure in figures(quick, "losses") for trace in figure["data"])
    assert 40 <= longest <= 60


def test_many_runs_have_shorter_curves_and_fewer_replies_and_the_page_says_so(
    rich_runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MANY_RUNS", 20)
    page = made(rich_runs)
    limits = Limits.of(len(rich_runs))
    assert limits.reply_prompts == 24
    assert len(page.data["replies"][0]["cards"]) == 24 < len(PROMPTS)
    assert page.data["replies"][0]["seeds"] == [0]
    assert "more than 20 runs" in page.shown
    assert "first 24 prompts" in page.shown


def test_replies_hold_every_seed_and_the_attacks(rich: Page) -> None:
    first, attacks, *_ = rich.data["replies"]
    assert first["title"] == "evaluation prompts, group 1"
    assert attacks["title"] == "prompts that attack, group 1"
    assert first["seeds"] == [0, 1, 2]
    assert first["columns"][0]["label"] == "base, 2 GiB"
    assert {card["kind"] for card in attacks["cards"]} == {"ignore"}


def test_base_reply_stands_beside_where_base_was_not_run(tmp_path: Path) -> None:
    store(make_run("lora"), tmp_path)
    card = made(read_runs(tmp_path)[0]).data["replies"][0]["cards"][0]
    assert card["base"] == "tea is nice."


def test_replies_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    write_text(store(make_run("lora"), tmp_path) / REPLIES, "{")
    store(make_run("dpo"), tmp_path)
    (store(make_run("full"), tmp_path) / REPLIES).unlink()
    assert "2 runs have no replies that could be read" in made(read_runs(tmp_path)[0]).shown


def test_every_column_is_defined() -> None:
    assert [column.key for column in COLUMNS if not column.about] == []
    better = {column.key: column.better for column in COLUMNS}
    assert (better["adherence"], better["forgetting"], better["status"]) == ("more", "less", "")
    for column in COLUMNS:
        assert column.more_is_better == (column.better == "more")


def test_definitions_cover_what_the_tables_show(rich: Page, quick: Page) -> None:
    for page in (rich, quick):
        for heading in ("adherence ↑ [95 %]", "forgetting ↓ nats/token [95 %]", "peak memory ↓"):
            assert heading in page.shown
        assert "Share, 0 to 1, of held-out prompts" in page.shown


def test_recipes_commands_and_versions_are_there(quick: Page) -> None:
    folder = next(QUICK.glob("lora-*"))
    assert f"ftbench rerun {folder}" in quick.shown
    assert 'algorithm = "peft:dora"' in quick.shown
    assert "transformers 5.23.0" in quick.shown


def test_table_has_headers_that_can_be_sorted_by(quick: Page) -> None:
    scopes = [attributes.get("scope") for tag, attributes in quick.elements.found if tag == "th"]
    assert None not in scopes
    assert scopes.count("row") >= 14
    cells = [attributes["data-sort"] for tag, attributes in quick.elements.found if "data-sort" in attributes]
    assert "0.96875" in cells


def test_against_and_price_add_their_columns(rich_runs: list[Run]) -> None:
    page = made(rich_runs, Asked(against="base", price=2.0))
    assert "against base ↑" in page.shown.replace("\xa0", " ")
    assert "cost ↓" in page.shown.replace("\xa0", " ")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_command_writes_the_file_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(make_run("lora"), tmp_path / "runs")
    code, out, _ = call(capsys, "report")
    assert code == 0
    assert "report.html: 1 run, " in out
    written = (tmp_path / "report.html").read_text("utf-8")
    assert written.startswith("<!doctype html>")
    assert written.rstrip().endswith("</html>")
    store(make_run("dpo"), tmp_path / "more")
    assert call(capsys, "report", "runs", "more", "--to", "both.html")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "more", "report.html", "both.html"}


def test_what_is_wrong_costs_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(make_run("lora"), tmp_path / "runs")
    (tmp_path / "empty").mkdir()
    wrong = [(["nowhere"], 2), (["empty"], 2), (["--against", "lroa"], 2), (["--to", "no/such/folder.html"], 1)]
    for arguments, expected in wrong:
        code, out, said = call(capsys, "report", *arguments)
        assert (code, out, len(said.splitlines())) == (expected, "", 1), said
    assert not (tmp_path / "report.html").exists()


def test_step_log_that_was_changed_costs_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(store(make_run("lora"), tmp_path / "runs") / METRICS, "{")
    code, _, said = call(capsys, "report")
    assert (code, len(said.splitlines())) == (1, 1)
    assert METRICS in said


@pytest.mark.parametrize("missing", ["plotly", "jinja2"])
def test_missing_library_costs_one_line_that_says_what_to_install(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store(make_run("lora"), tmp_path / "runs")
    monkeypatch.setitem(sys.modules, missing, None)
    code, out, said = call(capsys, "report")
    assert (code, out) == (1, "")
    assert len(said.splitlines()) == 1
    assert 'pip install "ftbench[report]"' in said
    assert missing in said


# ---- in a browser ----------------------------------------------------------------------------------------------------

DRIVER = """
addEventListener("error", (event) => { document.documentElement.dataset.failed = event.message; });
(async () => {
  const root = document.documentElement;
  const pause = (time) => new Promise((next) => setTimeout(next, time));
  while (!root.dataset.drawn) await pause(20);
  const seen = {};
  const column = (text) => [...document.querySelectorAll("table.sheet th button")]
    .find((button) => button.textContent.startsWith(text));
  const names = () => document.querySelector("table.sheet").tBodies[0].querySelectorAll("th");
  const list = () => [...names()].map((cell) => cell.textContent.trim());
  const cards = () => document.querySelectorAll("#replies-cards .card").length;
  seen.first = list();
  column("algorithm").click(); seen.byName = list();
  column("algorithm").click(); seen.byNameBack = list();
  column("tokens/s").click(); seen.bySpeed = list();
  seen.sort = column("tokens/s").closest("th").getAttribute("aria-sort");
  seen.cards = cards();
  const search = document.getElementById("replies-search");
  search.value = WORDS; search.dispatchEvent(new Event("input")); await pause(300);
  seen.found = cards();
  seen.marks = document.querySelectorAll("#replies-cards mark").length;
  search.value = "no such words anywhere"; search.dispatchEvent(new Event("input")); await pause(300);
  seen.none = cards();
  search.value = ""; search.dispatchEvent(new Event("input")); await pause(300);
  document.getElementById("replies-more").click();
  seen.more = cards();
  const chip = document.querySelector('.chip[data-series="lora"]');
  const visible = () => document.getElementById("group-1-trade-offs-0").data
    .filter((trace) => trace.meta?.series === "lora" && trace.visible).length;
  seen.visible = visible(); chip.click(); await pause(50); seen.hidden = visible();
  const background = () => getComputedStyle(document.body).backgroundColor;
  seen.themes = [background()]; document.getElementById("theme").click(); await pause(50);
  seen.themes.push(background());
  const wide = document.querySelector("th.wide");
  seen.wide = [getComputedStyle(wide).display]; document.querySelector(".widen").click();
  seen.wide.push(getComputedStyle(wide).display);
  const width = () => document.getElementById("group-1-memory-0")._fullLayout.width;
  seen.widths = [width()];
  dispatchEvent(new Event("beforeprint")); await pause(200); seen.widths.push(width()); seen.paper = background();
  dispatchEvent(new Event("afterprint")); await pause(200); seen.widths.push(width());
  seen.overflow = root.scrollWidth - root.clientWidth;
  root.dataset.seen = JSON.stringify(seen);
})();
"""


@dataclass
class Browsed:
    """What a browser made of a page: its document afterwards, and what it complained of."""

    document: str
    console: list[str]

    @property
    def root(self) -> dict[str, str | None]:
        return next(attributes for tag, attributes in Elements(self.document).found if tag == "html")


def browse(path: Path) -> Browsed:
    """Open a page from disk, without a network, and wait until it is drawn."""
    command = [browser_path(), *FLAGS, "--enable-logging=stderr", "--virtual-time-budget=30000"]
    command += ["--window-size=1280,900", f"--user-data-dir={path.parent / 'profile'}", "--proxy-server=127.0.0.1:9"]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=600, check=True
    )
    return Browsed(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def driven(page: Page, words: str) -> str:
    """A copy of the page that a script drives; its policy would not let that script run."""
    text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.text)
    assert count == 1
    return text.replace("</body>", f"<script>{DRIVER.replace('WORDS', json.dumps(words))}</script></body>")


def test_browser_draws_the_recorded_runs_without_a_complaint(quick: Page, tmp_path: Path) -> None:
    write_text(tmp_path / "quick.html", quick.text)
    browsed = browse(tmp_path / "quick.html")
    assert browsed.console == []
    assert browsed.root["data-drawn"] == str(len(quick.data["charts"]))
    drawn = browsed.document.count('class="main-svg"') + browsed.document.count('class="main-svg ')
    assert drawn >= len(quick.data["charts"])
    tags = Elements(browsed.document)
    assert sum(attributes.get("class") == "card" for _, attributes in tags.found) == 12
    for run in read_runs(QUICK)[0]:
        assert run.result.recipe.algorithm in tags.shown


def test_browser_sorts_searches_and_toggles(rich: Page, tmp_path: Path) -> None:
    write_text(tmp_path / "rich.html", driven(rich, "number 7"))
    browsed = browse(tmp_path / "rich.html")
    assert browsed.console == []
    assert "data-failed" not in browsed.root
    seen = json.loads(browsed.root["data-seen"] or "null")
    assert sorted(seen["first"]) == seen["byName"] == seen["byNameBack"][::-1]
    assert set(seen["first"]) == set(SKILL)
    assert seen["bySpeed"][0] == "peft:vera"
    assert set(seen["bySpeed"][-2:]) == {"base", "full"}
    assert seen["sort"] == "descending"
    assert (seen["cards"], seen["found"], seen["none"], seen["more"]) == (12, 1, 0, 24)
    assert seen["marks"] >= 1
    assert (seen["visible"], seen["hidden"]) == (2, 0)
    assert len(set(seen["themes"])) == 2
    assert seen["wide"] == ["none", "table-cell"]
    assert seen["overflow"] == 0
    assert seen["widths"][1] <= 700 < seen["widths"][0] == seen["widths"][2]
    assert seen["paper"] == "rgb(255, 255, 255)"


def test_browser_takes_hostile_text_as_text(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    plain = store(make_run("lora"), out, "lora")
    rows = [json.loads(line) for line in (plain / REPLIES).read_text("utf-8").splitlines()]
    write_jsonl(plain / REPLIES, [row | {"prompt": row["prompt"] + HOSTILE, "reply": HOSTILE} for row in rows])
    store(make_run(f"peft:{HOSTILE}"), out, "hostile")
    page = made(read_runs(out)[0])
    write_text(tmp_path / "hostile.html", page.text)
    browsed = browse(tmp_path / "hostile.html")
    assert browsed.console == []  # the policy complains of any script that is not the page's
    found = Elements(browsed.document)
    assert not any(tag == "img" for tag, _ in found.found)
    assert "<img src=x onerror=alert(2)>" in found.shown


PHONE = """() => {
  const root = document.documentElement;
  const cell = document.querySelector("table.sheet tbody th");
  cell.closest("table").parentElement.scrollLeft = 200;
  const within = (element) => element.getBoundingClientRect().right <= innerWidth + 1;
  return {
    width: root.scrollWidth,
    charts: [...document.querySelectorAll(".js-plotly-plot")].map((plot) => plot._fullLayout.width),
    rows: Math.round(cell.getBoundingClientRect().left),
    outside: [...document.querySelectorAll("button, input, .card, h2, p")]
      .filter((element) => !element.closest("table") && !within(element))
      .map((element) => element.outerHTML.slice(0, 80)),
    small: [...document.querySelectorAll(".chip")].filter((chip) => chip.getBoundingClientRect().height < 24).length,
    ground: getComputedStyle(document.body).backgroundColor,
  };
}"""


def test_browser_draws_the_report_on_a_phone_in_both_themes(quick: Page, tmp_path: Path) -> None:
    write_text(tmp_path / "quick.html", quick.text)
    grounds = set()
    said: list[str] = []
    themes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    with browser() as opened:
        for theme in themes:
            phone = opened.new_context(
                viewport={"width": 375, "height": 812}, color_scheme=theme, is_mobile=True, has_touch=True
            )
            view = phone.new_page()
            view.on("console", lambda message: said.append(message.text))
            view.on("pageerror", lambda error: said.append(str(error)))
            view.goto((tmp_path / "quick.html").as_uri())
            view.wait_for_selector(f"html[data-drawn='{len(quick.data['charts'])}']", state="attached")
            seen = view.evaluate(PHONE)
            assert seen["width"] == 375  # the table alone is wider, and is moved in a frame of its own
            assert seen["charts"]
            assert all(120 < width <= 375 for width in seen["charts"])
            assert 0 <= seen["rows"] < 40  # what a row is of stays in view
            assert (seen["outside"], seen["small"]) == ([], 0)
            grounds.add(seen["ground"])
            phone.close()
    assert said == []
    assert len(grounds) == 2
