"""`ftbench show`: one run, found by its folder or the beginning of its name."""

import json
from pathlib import Path

import pytest

from ftbench.cli import main
from ftbench.evaluation.statistics import Measured
from ftbench.results.store import REPLIES
from made_results import JUDGE, make_run, store


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with four runs: lora twice, one of another seed, and a failed one."""
    out = tmp_path / "runs"
    lora = make_run("lora", adherence=0.25)
    store(lora, out)
    store(make_run("lora", adherence=0.75, started=5), out, name=f"{lora.folder.name}-2")
    store(make_run("lora", seed=1), out)
    store(make_run("dpo", status="out-of-memory", reason="an allocation failed", phase="adapt"), out)
    return out


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["show", *arguments])
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


def test_beginning_of_a_name_finds_the_newest(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = show(capsys, "lora-s0")
    assert code == 0
    assert "0.750 (n = 64, 95 % interval 0.650 to 0.850)" in text
    assert "lora (ftbench-lora 0.1.0)" in text


def test_folder_finds_a_run_wherever_it_is(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(out.glob("lora-s1-*"))
    monkeypatch.chdir("/")
    code, text, _ = show(capsys, str(folder))
    assert code == 0
    assert text.startswith(str(folder))


def test_settings_figures_phases_and_replies_are_shown(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = show(capsys, "lora-s1", "--replies", "1")
    for part in ("seed", "smollm2", "3.00 GiB", "1,234.500", "train", "Abacus 3000", "held-out AUC 0.990"):
        assert part in text
    assert "Trains carry tea." in text
    assert "tea is nice." in text
    assert "What is rain?" not in text


def test_a_weak_judge_is_warned_of_and_both_judges_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"auc": 0.72, "second": "words-1", "second_auc": 0.98, "refused": 0.01, "shuffles_found": 0.97}
    agreement = {"agreement": Measured(mean=0.75, n=60), "kappa": 0.5}
    store(make_run("lora", facts={"judge": JUDGE.model_copy(update=changes)}, measures=agreement), tmp_path)
    _, text, _ = show(capsys, "lora", "--out", str(tmp_path))
    for part in (
        "the judge's held-out AUC is 0.72, below 0.90",
        "words-1, held-out AUC 0.980",
        "1.0% of held-out gold replies; of their shuffles, 97.0%",
        "0.750 (n = 60)",
    ):
        assert part in text
    assert "kappa" in text


def test_a_good_judge_is_not_warned_of(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "warning" not in show(capsys, "lora")[1]


def test_a_degenerate_reply_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = store(make_run("lora"), tmp_path)
    path = folder / REPLIES
    assert '"degenerate": null' in path.read_text()
    changed = path.read_text().replace(
        '"on_topic": true, "degenerate": null', '"on_topic": false, "degenerate": "repetition"'
    )
    path.write_text(changed)
    assert "[repetition, 0.93]" in show(capsys, str(folder))[1]


def test_replies_of_before_degenerate_ones_were_told_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store(make_run("lora"), tmp_path)
    path = folder / REPLIES
    old = path.read_text().replace('"degenerate": null, "second": null, ', "")
    assert "degenerate" not in old
    path.write_text(old)
    code, text, _ = show(capsys, str(folder))
    assert code == 0
    assert "[adheres, 0.93]" in text


def test_failed_run_shows_its_reason_and_phase(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = show(capsys, "dpo")
    assert code == 0
    assert "out-of-memory in phase 'adapt': an allocation failed" in text
    assert "replies\n" not in text


def test_unknown_name_gives_the_nearest(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(out.glob("lora-s1-*")).name
    code, text, said = show(capsys, name.replace("lora", "lroa"))
    assert (code, text) == (2, "")
    assert len(said.splitlines()) == 1
    assert name in said


def test_json_holds_the_result_and_as_many_replies_as_asked_for(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = show(capsys, "lora-s0", "--json", "--replies", "1")
    values = json.loads(text)
    assert values["status"] == "ok"
    assert values["recipe"]["algorithm"] == "lora"
    assert [reply["prompt"] for reply in values["replies"]] == ["What is tea?"]
    _, text, _ = show(capsys, "dpo", "--json")
    assert json.loads(text)["reason"] == "an allocation failed"


@pytest.mark.parametrize("content", [None, '{"prompt": "cut sh', "\x00"])
def test_replies_that_cannot_be_read_cost_one_line(
    out: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = next(out.glob("lora-s1-*")) / REPLIES
    path.unlink() if content is None else path.write_text(content)
    code, _, said = show(capsys, "lora-s1")
    assert code == 1
    assert len(said.splitlines()) == 1
    assert str(path.name) in said


def test_no_folder_of_runs_is_said_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = show(capsys, "lora")
    assert code == 2
    assert len(said.splitlines()) == 1


def test_what_the_driver_says_of_a_card_stands_with_its_phase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(make_run("lora", measures={"phase_driver_bytes": {"train": 5 * 2**30}}), tmp_path / "runs")
    code, text, _ = show(capsys, "lora")
    assert code == 0
    assert text.count("of the card in use 5.00 GiB") == 1
