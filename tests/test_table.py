"""The table: comparable rows together, others apart; every format carries every row."""

import csv
import io
import json
import math
import random
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from ftbench.cli import main
from ftbench.errors import UsageError
from ftbench.evaluation.statistics import Measured
from ftbench.execution.reuse import Inputs, still_holds
from ftbench.results.result import Outcomes, Result, Tuning
from ftbench.results.rows import Asked, build_groups
from ftbench.results.store import REPLIES, RESULT, Run, read_runs
from ftbench.results.table import FORMATS, render
from made_results import DATA, HARDWARE, JUDGE, make_run, store

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "topic": ({"topic": "gardening"}, "'gardening'"),
    "data": ({"data": "oasst1", "facts": {"data": DATA.model_copy(update={"origin": "oasst1"})}}, "oasst1"),
    "changed data of one name": ({"facts": {"data": DATA.model_copy(update={"digest": "0" * 64})}}, "00000000"),
    "model": ({"model": "gpt2"}, "gpt2"),
    "changed model of one name": ({"facts": {"model_digest": "1" * 64}}, "11111111"),
    "tokens": ({"tokens": 77_000}, "77,000 tokens"),
    "batch": ({"effective_batch_size": 5}, "5 prompts a step"),
    "length of replies": ({"max_new_tokens": 9}, "9 tokens at most"),
    "evaluation prompts": ({"facts": {"data": DATA.model_copy(update={"evaluation_prompts": 32})}}, "32 prompts"),
    "judge": ({"facts": {"judge": JUDGE.model_copy(update={"version": "tfidf-2"})}}, "tfidf-2"),
    "hardware": ({"facts": {"environment": HARDWARE.model_copy(update={"hardware": "Enigma"})}}, "Enigma"),
    "cores": ({"facts": {"environment": HARDWARE.model_copy(update={"cores": 48})}}, "48 cores"),
}


def names(runs: list[Run], sort: str | None = None) -> list[list[str]]:
    return [[row["algorithm"] for row in group.rows] for group in build_groups(runs, Asked(sort))]


@pytest.mark.parametrize("what", OTHERS)
def test_rows_that_differ_in_what_was_asked_or_found_stand_apart_and_the_text_says_why(what: str) -> None:
    changes, shown = OTHERS[what]
    runs = [make_run("lora"), make_run("dpo", **changes)]
    assert names(runs) == [["lora"], ["dpo"]]
    text = render(build_groups(runs), "github")
    below = text.split("\n\n")
    assert "2 tables" in below[0]
    assert any(shown in part and "| dpo" not in part for part in below[1:]), text
    assert shown not in render(build_groups(runs[:1]), "github")


@pytest.mark.parametrize("style", ["github", "html", "latex"])
def test_under_the_rows_of_a_weak_judge_stands_a_warning_once(style: str) -> None:
    weak = {"judge": JUDGE.model_copy(update={"auc": 0.61})}
    text = render(build_groups([make_run("lora", facts=weak), make_run("dpo", facts=weak)]), style)
    assert text.count("held-out AUC is 0.61, below 0.90") == 1
    assert "below 0.90" not in render(build_groups([make_run("lora"), make_run("dpo")]), style)


@pytest.mark.parametrize("style", ["github", "latex", "html"])
def test_judges_that_disagree_are_warned_of(style: str) -> None:
    doubtful = {"agreement": Measured(mean=0.8, n=64)}
    text = render(build_groups([make_run("lora", measures=doubtful), make_run("dpo")]), style)
    assert text.count("second judge agrees") == 1
    assert "lora" in text[text.index("warning") : text.index("second judge agrees")]
    fine = {"agreement": Measured(mean=0.95, n=64)}
    assert "agrees" not in render(build_groups([make_run("lora", measures=fine)]), style)
    assert "judges agree" in render(build_groups([make_run("lora", measures=fine)]), style, wide=True)


def test_a_seed_counts_once_whatever_changes_no_figure() -> None:
    runs = [
        make_run("lora", adherence=0.2, started=1),
        make_run("lora", adherence=0.4, started=2, checkpoints=0),
        make_run("lora", status="timed-out", reason="late", time_limit=1.0, started=3),
        make_run("lora", adherence=0.6, started=4, seed=1),
    ]
    (group,) = build_groups(runs)
    (only,) = group.rows
    assert only["seeds"] == [0, 1]
    assert only["adherence"]["mean"] == pytest.approx(0.5)


def test_a_digest_that_was_edited_loses_no_run() -> None:
    runs = [make_run(name, seed=seed) for name in ("lora", "dpo") for seed in (0, 1)]
    alike = [Run(run.folder, run.result.model_copy(update={"recipe_digest": "0" * 64})) for run in runs]
    (group,) = build_groups(alike)
    assert {row["algorithm"]: row["seeds"] for row in group.rows} == {"lora": [0, 1], "dpo": [0, 1]}


def test_same_recipe_on_two_machines_is_two_rows() -> None:
    other = {"environment": HARDWARE.model_copy(update={"hardware": "Enigma"})}
    assert names([make_run("lora"), make_run("lora", started=1, facts=other)]) == [["lora"], ["lora"]]


def test_algorithms_options_seeds_and_time_limits_stand_in_one_table() -> None:
    runs = [
        make_run("lora", options={"rank": 8}, adherence=0.4),
        make_run("lora", options={"rank": 16}, adherence=0.3),
        make_run("lora", seed=1, adherence=0.2),
        make_run("dpo", time_limit=60.0, adherence=0.1),
    ]
    assert names(runs) == [["lora", "lora", "lora", "dpo"]]
    text = render(build_groups(runs), "github")
    assert "rank=8" in text
    assert "rank=16" in text


def test_memory_budgets_stand_in_one_table_which_names_them() -> None:
    cut = {"micro_batch_tokens": 256, "checkpointing": True}
    runs = [
        make_run("base", memory_budget=2**31),
        make_run("lora", memory_budget=2**31),
        make_run("lora", memory_budget=2**30, measures=cut),
        make_run("full", memory_budget=2**30, status="out-of-memory", reason="an allocation failed"),
    ]
    (group,) = build_groups(runs)
    text = render([group], "github")
    assert "memory budget" not in group.terms
    for part in ("memory budget", "2.00 GiB", "1.00 GiB", "256 + checkpointing", "out-of-memory"):
        assert part in text
    sheet = list(csv.DictReader(io.StringIO(render([group], "csv"))))
    assert {row["memory_budget"] for row in sheet} == {str(2**30), str(2**31)}
    assert {row["cut.micro_batch_tokens"] for row in sheet} == {"", "256"}


def test_one_budget_for_all_stands_below_the_table() -> None:
    for budget, text in ((2**30, "1.00 GiB"), (None, "none")):
        (group,) = build_groups([make_run("lora", memory_budget=budget), make_run("full", memory_budget=budget)])
        assert group.terms["memory budget"] == text
        assert "| memory budget" not in render([group], "github")


def test_settings_that_change_no_figure_part_no_rows() -> None:
    runs = [make_run("lora"), make_run("dpo", evaluation_batch_size=4), make_run("full", device="cpu", name="mine")]
    runs.append(make_run("orpo", status="failed", reason="x", device="cpu"))
    (group,) = build_groups(runs)
    assert {row["algorithm"] for row in group.rows} == {"lora", "dpo", "full", "orpo"}


@pytest.mark.parametrize("status", ["failed", "out-of-memory", "timed-out", "skipped"])
def test_failed_run_stands_with_those_that_were_asked_the_same_and_says_why(status: Any) -> None:
    runs = [
        make_run("lora"),
        make_run("full", topic="gardening"),
        make_run("dpo", topic="gardening", status=status, reason="out of luck", phase="adapt"),
        make_run("orpo", topic="knots", status=status, reason="no knots", phase="data"),
    ]
    assert names(runs) == [["lora"], ["full", "dpo"], ["orpo"]]
    text = render(build_groups(runs), "github")
    assert f"dpo: {status}: out of luck" in text
    assert f"orpo: {status}: no knots" in text


def test_failed_run_that_knows_its_hardware_does_not_stand_with_another() -> None:
    other = {"environment": HARDWARE.model_copy(update={"hardware": "Enigma"})}
    runs = [
        make_run("lora"),
        make_run("full", facts=other, started=1),
        make_run("dpo", status="failed", reason="x", facts={"environment": HARDWARE}, started=2),
    ]
    assert names(runs) == [["lora", "dpo"], ["full"]]


def test_runs_that_all_failed_in_other_places_stand_together() -> None:
    late = {"data": DATA, "judge": JUDGE, "environment": HARDWARE, "model_digest": "f" * 64}
    runs = [
        make_run("lora", status="failed", reason="at once"),
        make_run("dpo", status="failed", reason="late", facts=late),
    ]
    (group,) = names(runs)
    assert sorted(group) == ["dpo", "lora"]


def test_newest_ok_of_a_repeated_recipe_counts() -> None:
    runs = [
        make_run("lora", adherence=0.1, started=1),
        make_run("lora", adherence=0.2, started=2),
        make_run("lora", status="failed", reason="full disk", started=3),
        make_run("dpo", status="failed", reason="first", started=4),
        make_run("dpo", status="timed-out", reason="second", started=5),
    ]
    (group,) = build_groups(runs)
    assert [row["adherence"] and row["adherence"]["mean"] for row in group.rows] == [0.2, None]
    assert group.rows[1]["reason"] == "second"


def test_best_row_stands_first_whatever_the_column_and_failures_last() -> None:
    low = {"forgetting": Measured(mean=0.01), "peak_memory_bytes": 2**20, "tokens_per_second": 10.0}
    runs = [
        make_run("dpo", status="failed", reason="x"),
        make_run("lora", adherence=0.3, measures=low),
        make_run("full", adherence=0.6),
    ]
    assert names(runs) == [["full", "lora", "dpo"]]
    assert names(runs, "adherence") == [["full", "lora", "dpo"]]
    assert names(runs, "tokens_per_second") == [["full", "lora", "dpo"]]
    assert names(runs, "forgetting") == [["lora", "full", "dpo"]]
    assert names(runs, "peak_memory_bytes") == [["lora", "full", "dpo"]]
    assert names(runs, "algorithm") == [["dpo", "full", "lora"]]


def test_figure_that_is_no_number_does_not_upset_the_order_or_the_json() -> None:
    nan = Measured(mean=float("nan"))
    runs = [
        make_run("a", measures={"forgetting": Measured(mean=0.3)}),
        make_run("b", measures={"forgetting": nan}),
        make_run("c", measures={"forgetting": Measured(mean=0.1)}),
        make_run("d", measures={"forgetting": Measured(mean=0.2)}),
    ]
    assert names(runs, "forgetting") == [["c", "d", "a", "b"]]
    json.loads(render(build_groups(runs), "json"), parse_constant=pytest.fail)


def outcomes(on_topic: list[bool], prompts: str = "p" * 64) -> Outcomes:
    """What became of prompts whose ordinary reply of 10 tokens got 1 nat less likely."""
    many = len(on_topic)
    return Outcomes(prompts=prompts, on_topic=on_topic, rise=[1.0] * many, ordinary_tokens=[10] * many)


def seeded(
    algorithm: str, seed: int, right: int, prompts: int = 40, memory_budget: int | None = None, **facts: Any
) -> Run:
    """A run that had the first `right` of the prompts right."""
    facts |= {"outcomes": outcomes([index < right for index in range(prompts)])}
    return make_run(algorithm, seed=seed, adherence=right / prompts, facts=facts, memory_budget=memory_budget)


def test_seeds_are_one_row_with_an_interval_over_prompts_and_seeds() -> None:
    runs = [seeded("lora", seed, right) for seed, right in enumerate((28, 30, 32))]
    (row,) = build_groups(runs)[0].rows
    assert row["seeds"] == [0, 1, 2]
    assert row["adherence"]["mean"] == pytest.approx(0.75)
    alone = build_groups([seeded("lora", 0, 30)])[0].rows[0]["adherence"]
    assert row["adherence"]["n"] == 120
    assert row["adherence"]["low"] < 0.7 < 0.8 < row["adherence"]["high"]
    assert alone["n"] == 64  # one run's own figure is as it was measured
    assert row["forgetting"]["mean"] == pytest.approx(0.1)
    assert row["tokens_per_second"] == {"mean": 1234.5, "low": 1234.5, "high": 1234.5, "n": 3}
    text = render(build_groups(runs), "github")
    assert "| seeds" in text
    assert "| 3 " in text


def test_seeds_that_failed_are_counted_and_make_no_figure() -> None:
    runs = [seeded("lora", 0, 28), seeded("lora", 1, 30), make_run("lora", seed=2, status="failed", reason="fell over")]
    (row,) = build_groups(runs)[0].rows
    assert row["status"] == "ok (2 of 3 seeds)"
    assert row["seeds"] == [0, 1]
    assert row["adherence"]["mean"] == pytest.approx(29 / 40)
    assert "fell over" in render(build_groups(runs), "github")


def test_rows_that_are_worked_out_together_say_what_each_says_alone() -> None:
    """Rows of as many seeds and prompts and of others, with a gap in what is known, or with nothing in common."""
    draw, sets = random.Random(0), []
    for number, (seeds, prompts) in enumerate([(2, 9), (3, 9), (3, 9), (3, 9), (3, 20), (3, 1), (3, 0), (1, 9)]):
        runs = []
        for seed in range(seeds):
            found = outcomes([draw.random() < 0.8 for _ in range(prompts)], str(seed) if number == 3 else "p")
            rise: list[float | None] = [draw.gauss(0, 5) for _ in range(prompts)]
            if number == 1:
                rise[seed] = None
            facts = {"outcomes": found.model_copy(update={"rise": rise, "attacks_on_topic": found.on_topic[::-1]})}
            runs.append(make_run(f"row-{number}", seed=seed, adherence=draw.random(), facts=facts))
        sets.append(runs)
    together = {row["algorithm"]: row for row in build_groups([run for runs in sets for run in runs])[0].rows}
    assert len(together) == len(sets)
    for runs in sets:
        (row,) = build_groups(runs)[0].rows
        assert together[row["algorithm"]] == row


def against(runs: list[Run], name: str = "lora") -> dict[str, str]:
    """What is said of each algorithm."""
    rows = build_groups(runs, Asked(against=name))[0].rows
    return {row["algorithm"]: row["difference"]["verdict"] for row in rows if row["difference"]}


def test_rows_are_tested_against_one_of_them() -> None:
    runs = [seeded("lora", seed, 36 - seed) for seed in range(3)]
    runs += [seeded("full", seed, 35 - seed) for seed in range(3)]
    runs += [seeded("orpo", seed, 4 + seed) for seed in range(3)]
    runs += [seeded("dpo", seed, 20) for seed in (3, 4)]
    runs += [seeded("simpo", 0, 4), make_run("ia3", status="failed", reason="x")]
    runs += [seeded("other", seed, 20, prompts=39) for seed in range(3)]
    runs += [
        make_run("base", adherence=0.0, measures={"training_tokens": None}, facts={"outcomes": outcomes([False] * 40)})
    ]
    assert against(runs) == {
        "lora": "reference",
        "full": "no difference shown",
        "orpo": "worse",
        "dpo": "no seed in common",
        "simpo": "one seed: nothing shown",
        "other": "not asked the same",
        "base": "worse",
    }
    assert against(runs, "base")["lora"] == "better"
    text = render(build_groups(runs, Asked(against="lora")), "github")
    assert "against lora ↑ [95 %]" in text
    assert "Holm's correction for 4 tests" in text
    for style in FORMATS:
        assert "worse" in render(build_groups(runs, Asked(against="lora")), style)


def test_one_prompt_or_none_on_topic_is_no_comparison() -> None:
    runs = [seeded(name, seed, 1, prompts=1) for name in ("lora", "full") for seed in range(3)]
    assert against(runs)["full"] == "too few prompts"
    silent = [seeded(name, seed, 0) for name in ("lora", "full") for seed in range(3)]
    assert against(silent)["full"] == "no difference shown"


def test_against_what_is_not_there_or_several() -> None:
    runs = [make_run("lora", options={"rank": 8}), make_run("lora", options={"rank": 16}), make_run("full")]
    with pytest.raises(UsageError, match="did you mean 'lora'"):
        build_groups(runs, Asked(against="lore"))
    with pytest.raises(UsageError, match="name one of their runs: lora-s0-"):
        build_groups(runs, Asked(against="lora"))
    named = build_groups(runs, Asked(against=str(runs[0].folder)))[0].rows
    assert sum(row["difference"]["verdict"] == "reference" for row in named) == 1


def test_rows_are_held_against_that_of_their_own_budget_and_all_against_what_trains_nothing() -> None:
    runs = [
        seeded(name, seed, right - seed, memory_budget=budget)
        for budget, rights in ((2**30, (30, 8)), (2**31, (8, 30)))
        for name, right in zip(("lora", "full"), rights, strict=True)
        for seed in range(3)
    ]
    silent = {"outcomes": outcomes([False] * 40)}
    runs.append(make_run("base", adherence=0.0, memory_budget=2**31, measures={"training_tokens": None}, facts=silent))

    def said(name: str) -> dict[tuple[str, int], str]:
        rows = build_groups(runs, Asked(against=name))[0].rows
        return {
            (row["algorithm"], row["memory_budget"] // 2**30): row["difference"]["verdict"]
            for row in rows
            if row["difference"]
        }

    assert said("lora") == {
        ("lora", 1): "reference",
        ("lora", 2): "reference",
        ("full", 1): "worse",
        ("full", 2): "better",
        ("base", 2): "worse",
    }
    assert said("base") == {("base", 2): "reference"} | {
        (name, budget): "better" for name in ("lora", "full") for budget in (1, 2)
    }
    own = said(next(str(run.folder) for run in runs if run.result.recipe.algorithm == "lora"))
    assert own == {("lora", 1): "reference", ("full", 1): "worse"}


def test_a_run_that_failed_on_one_machine_stays_beside_one_that_went_well_on_another() -> None:
    elsewhere = HARDWARE.model_copy(update={"hardware": "Enigma"})
    there: dict[str, Any] = {"environment": elsewhere, "data": DATA, "judge": JUDGE, "model_digest": "f" * 64}
    failed = make_run("lora", status="out-of-memory", reason="x", facts=there)
    fine = make_run("lora", started=1)
    groups = build_groups([failed, fine])
    assert sorted(row["status"] for group in groups for row in group.rows) == ["ok", "out-of-memory"]
    here = make_run("lora", status="failed", reason="y", started=2, facts={**there, "environment": HARDWARE})
    groups = build_groups([failed, here])
    assert sorted(row["status"] for group in groups for row in group.rows) == ["failed", "out-of-memory"]
    early = make_run("lora", status="failed", reason="z")
    for repeated in ([early, fine], [fine, early], [early, failed]):
        assert [row["status"] for group in build_groups(repeated) for row in group.rows] in (["ok"], ["out-of-memory"])


def test_runs_on_more_cards_stand_apart() -> None:
    groups = build_groups([make_run("lora"), make_run("lora", devices=2)])
    assert len(groups) == 2
    assert {group.terms["hardware"].split()[0] for group in groups} == {"Abacus", "2"}


def test_rows_whose_rate_was_not_sought_are_named_beside_others() -> None:
    options = {"learning_rate": 1e-3}
    tuning = Tuning(learning_rate=1e-3, seed=0, validation_prompts=9, trials=[], tokens=4750, seconds=321.0)
    sought = make_run("lora", options=options, facts={"tuning": tuning})
    plain = make_run("full", options=options)
    assert "not tuned: full: " in render(build_groups([sought, plain]), "github")
    assert "not tuned" not in render(build_groups([sought]), "github")
    assert "not tuned" not in render(build_groups([plain]), "github")


def test_a_price_makes_a_cost_and_wide_shows_all() -> None:
    runs = [make_run("lora", measures={"run_seconds": 1800.0, "reply_tokens": 40.0})]
    assert build_groups(runs)[0].rows[0]["cost"] is None
    groups = build_groups(runs, Asked(price=3.0))
    assert groups[0].rows[0]["cost"]["mean"] == 1.5
    assert "tokens a reply" not in render(groups, "github")
    assert "tokens a reply" in render(groups, "github", wide=True)


def test_unknown_column_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'adherence'"):
        build_groups([make_run("lora")], Asked("adherance"))


RUNS = [
    make_run("lora", adherence=0.75),
    make_run("full_x<b>&", adherence=0.5),
    make_run("dpo", status="failed", reason="50 % of a_b & <c>", phase="train"),
    make_run("orpo", topic="gardening"),
]


def test_json_is_one_list_of_rows_with_measured_values() -> None:
    rows = json.loads(render(build_groups(RUNS), "json"))
    assert [row["algorithm"] for row in rows] == ["lora", "full_x<b>&", "dpo", "orpo"]
    lora, _, dpo, orpo = rows
    for key in ("adherence", "distinct", "forgetting", "peak_memory_bytes", "tokens_per_second"):
        assert set(lora[key]) == {"mean", "low", "high", "n"}
        assert dpo[key] is None
    assert lora["adherence"] == {"mean": 0.75, "low": 0.65, "high": 0.85, "n": 64}
    assert lora["peak_memory_bytes"]["mean"] == 3 * 2**30
    assert (dpo["status"], dpo["reason"]) == ("failed", "50 % of a_b & <c>")
    assert lora["terms"] != orpo["terms"]


def test_csv_reads_back_with_one_set_of_columns() -> None:
    for runs in (RUNS, RUNS[2:3], RUNS[2:]):
        text = render(build_groups(runs), "csv")
        rows = list(csv.DictReader(io.StringIO(text)))
        assert sorted(row["algorithm"] for row in rows) == sorted(run.result.recipe.algorithm for run in runs)
        assert "adherence.mean" in rows[0]
        assert "adherence" not in rows[0]
        assert all(None not in row and None not in row.values() for row in rows)
    assert {row["algorithm"]: row["adherence.mean"] for row in rows} == {"dpo": "", "orpo": "0.5"}


class Cells(HTMLParser):
    """Collects the text of table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.inside = tag == "td"
        assert tag not in ("b", "c"), "text of a run became markup"
        if self.inside:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data.strip()


def test_html_holds_every_row_and_escapes_what_it_shows() -> None:
    text = render(build_groups(RUNS), "html")
    parser = Cells()
    parser.feed(text)
    assert {"lora", "full_x<b>&", "dpo", "orpo"} <= set(parser.cells)
    assert "50 % of a_b &amp; &lt;c&gt;" in text


def test_latex_holds_every_row_and_escapes_what_it_shows() -> None:
    text = render(build_groups(RUNS), "latex")
    rows = [line for line in text.splitlines() if line.endswith("\\\\") and " & " in line]
    assert [row.split(" & ")[0].strip() for row in rows if "algorithm" not in row] == [
        "lora",
        "full\\_x\\ensuremath{<}b\\ensuremath{>}\\&",
        "dpo",
        "orpo",
    ]
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 2
    for line in text.splitlines():  # what is no table is a comment
        assert not line or line.startswith(("\\", "%", " ")) or line in rows, line


@pytest.mark.parametrize("style", FORMATS)
def test_table_command_prints_every_format_from_disk(
    style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in RUNS[:1] + RUNS[2:]:
        store(run, tmp_path / "runs")
    with pytest.raises(SystemExit) as ended:
        main(["table", "--format", style])
    said = capsys.readouterr()
    assert (ended.value.code, said.err) == (0, "")
    for name in ("lora", "dpo", "orpo"):
        assert name in said.out


OUTCOMES: dict[str, Any] = {"prompts": "a", "on_topic": [True, False], "rise": [0.1, 0.2], "ordinary_tokens": [12, 12]}
BROKEN: dict[str, Callable[[str], str]] = {
    "cut-short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not-json": lambda text: "adherence = 1\n",
    "a-list": lambda text: "[1]",
    "newer": lambda text: text.replace('"schema_version": 1', '"schema_version": 2'),
    "unknown-status": lambda text: text.replace('"status": "ok"', '"status": "splendid"'),
    "no-recipe": lambda text: '{"schema_version": 1, "status": "ok"}',
    "share-of-seven": lambda text: text.replace('"mean": 0.5', '"mean": 7.0'),
    "outcomes-unlike": lambda text: edited(text, outcomes=OUTCOMES | {"ordinary_tokens": [12]}),
}


def edited(text: str, **changes: Any) -> str:
    return json.dumps(json.loads(text) | changes)


@pytest.mark.parametrize("how", BROKEN)
def test_result_that_cannot_be_read_costs_one_line_and_the_others_are_shown(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(RUNS[0], tmp_path / "runs")
    path = store(RUNS[3], tmp_path / "runs", name="broken-one") / RESULT
    path.write_text(BROKEN[how](path.read_text("utf-8")), "utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["table"])
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert "| lora" in said.out
    assert "orpo" not in said.out
    assert len(said.err.splitlines()) == 1
    assert "broken-one" in said.err
    if how == "newer":
        assert "newer ftbench" in said.err


def test_bytes_that_are_no_text_cost_one_line(tmp_path: Path) -> None:
    (store(RUNS[0], tmp_path) / RESULT).write_bytes(b"\xff\x00{")
    runs, warnings = read_runs(tmp_path)
    assert not runs
    assert len(warnings) == 1


def test_what_is_no_run_is_passed_over_and_what_cannot_be_opened_costs_one_line(tmp_path: Path) -> None:
    store(RUNS[0], tmp_path)
    for name in ("empty", ".unfinished-1-x"):
        (tmp_path / name).mkdir()
    (tmp_path / ".unfinished-1-x" / RESULT).write_text("{")
    (tmp_path / "notes.txt").write_text("of a person")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "odd" / RESULT).mkdir(parents=True)
    runs, warnings = read_runs(tmp_path)
    assert [run.folder for run in runs] == [tmp_path / RUNS[0].folder]
    assert warnings == [f"cannot read {tmp_path / 'odd' / RESULT}: Is a directory"]


def test_folder_without_runs_is_said_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "notes").mkdir(parents=True)
    (tmp_path / "runs" / ".unfinished-1-x").mkdir()
    for arguments in (["table"], ["table", "nowhere"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        said = capsys.readouterr()
        assert ended.value.code == 2
        assert len(said.err.splitlines()) == 1
        assert "ftbench run" in said.err


def test_folders_of_two_places_make_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(make_run("lora", adherence=0.4), tmp_path / "here")
    store(make_run("dpo", adherence=0.6, started=9), tmp_path / "there")
    with pytest.raises(SystemExit):
        main(["table", "here", "there", "--format", "json"])
    assert [row["algorithm"] for row in json.loads(capsys.readouterr().out)] == ["dpo", "lora"]


def with_versions(run: Run, **changed: str) -> Result:
    """The run's result as if it were made with what is installed here, but for what is given."""
    versions = {name: version(name) for name in ("ftbench", "torch", "transformers", "ftbench-lora", "peft")}
    environment = HARDWARE.model_copy(update={"versions": {**versions, **changed}})
    return run.result.model_copy(update={"environment": environment, "plugin": "ftbench-lora"})


def test_a_run_of_data_or_a_model_that_changed_since_does_not_hold() -> None:
    result = with_versions(make_run("lora"))
    assert still_holds(result, Inputs(DATA.digest, None))
    assert still_holds(result, Inputs(DATA.digest, "f" * 64))
    assert not still_holds(result, Inputs("0" * 64, "f" * 64))
    assert not still_holds(result, Inputs(DATA.digest, "0" * 64))
    failed = with_versions(make_run("lora", status="failed", reason="x"))
    assert not still_holds(failed, Inputs(DATA.digest, None))


@pytest.mark.parametrize("name", ["torch", "transformers", "ftbench-lora", "peft"])
def test_a_run_made_with_other_software_does_not_hold(name: str) -> None:
    assert not still_holds(with_versions(make_run("lora"), **{name: "0.0.1"}), Inputs(DATA.digest, None))


def test_what_its_plugin_is_not_built_on_may_change() -> None:
    assert still_holds(with_versions(make_run("lora"), trl="0.0.1"), Inputs(DATA.digest, None))


def test_the_cache_has_a_column_where_it_differs() -> None:
    plain = [make_run(name, measures={"cache_bytes_per_token": 23040.0}) for name in ("lora", "full")]
    assert "cache" not in render(build_groups(plain), "github")
    runs = [*plain, make_run("mla", measures={"cache_bytes_per_token": 7200.0})]
    text = render(build_groups(runs), "github")
    assert "cache ↓ a token" in text
    assert "7.03 KiB" in text
    assert [row["cache_bytes_per_token"] for row in json.loads(render(build_groups(runs), "json"))].count(23040.0) == 2


def test_what_an_algorithm_measured_of_itself_has_columns() -> None:
    runs = [make_run("lora"), make_run("mla", measures={"own": {"KL_healed_nats/token": 0.33, "convert_s": 21.0}})]
    head, *_ = render(build_groups(runs), "github").splitlines()
    assert "KL healed nats/token" in head
    assert "convert s" in head
    rows = list(csv.DictReader(io.StringIO(render(build_groups(runs), "csv"))))
    assert {row["algorithm"]: row["own.convert_s"] for row in rows} == {"lora": "", "mla": "21.0"}
    unknown = [make_run("mla", measures={"own": {"convert_s": math.nan}})]
    (row,) = csv.DictReader(io.StringIO(render(build_groups(unknown), "csv")))
    assert row["own.convert_s"] == ""
    assert {"own": {}, "algorithm": "lora"}.items() <= next(
        row for row in json.loads(render(build_groups(runs), "json")) if row["algorithm"] == "lora"
    ).items()


@pytest.mark.parametrize(
    "asked", [["table"], ["table", "--format", "json"], ["show", "lora"], ["report", "--to", "r.html"]]
)
def test_a_model_that_says_nothing_is_a_row_like_others(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = {"distinct": Measured(mean=0.0, n=2), "degenerate": Measured(mean=1.0, n=2), "reply_tokens": 0.0}
    runs = [make_run("base"), make_run("lora", adherence=0.0, measures=nothing)]
    for run in runs:
        path = store(run, tmp_path / "runs") / REPLIES
        silent = [{**json.loads(line), "reply": "", "tokens": 0, "score": 0.0, "on_topic": False}
                  for line in path.read_text("utf-8").splitlines()]  # fmt: skip
        path.write_text("".join(json.dumps(line) + "\n" for line in silent), "utf-8")
    with pytest.raises(SystemExit) as ended:
        main(asked)
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert "lora" in (said.out if "--to" not in asked else Path("r.html").read_text("utf-8"))
