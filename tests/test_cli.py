"""The command line: light until a command needs more, and one line that helps for whatever is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftbench.cli import main
from made_results import make_run, store
from strangers import environment, ftbench

HEAVY = ("torch", "transformers", "datasets", "sklearn", "peft", "scipy", "pandas")
LOOK = f"""
import sys
from ftbench.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["algos"],
        ["table"],
        ["report"],
        ["show", "lora"],
        ["plugins"],
        ["recipes"],
        ["models"],
        ["data"],
    ],
    ids=" ".join,
)
def test_light_command_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    store(make_run("lora"), tmp_path / "runs")
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *arguments], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr.strip() == ""


def test_a_table_over_seeds_imports_nothing_that_only_runs_need(tmp_path: Path) -> None:
    for seed in range(2):
        store(make_run("lora", seed=seed), tmp_path / "runs")
    look = LOOK.replace(str(HEAVY), str(("torch", "scipy.stats", "ftbench.models", "ftbench.training", "ftbench.data")))
    done = subprocess.run(
        [sys.executable, "-c", look, "table"], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "| 2 " in done.stdout
    assert done.stderr.strip() == ""


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


# What is asked, and what the line must name.
WRONG_USAGE = [
    (["rnu"], "'run'"),
    (["table", "--format", "markdown"], "github"),
    (["report", "nowhere"], "nowhere"),
    (["run"], "--algo"),
    (["run", "--alog", "lora"], "--algo"),
    (["run", "--algo", "lroa"], "'lora'"),
    (["run", "--algo", "lora", "--recipe", "quik"], "'quick'"),
    (["run", "--algo", "lora", "--recipe", "./nowhere.toml"], "./nowhere.toml"),
    (["run", "--algo", "lora", "--set", "lora.rnak=3"], "'rank'"),
    (["run", "--algo", "lora", "--set", "lroa.rank=3"], "'lora'"),
    (["run", "--algo", "lora", "--set", "lora.rank=many"], "rank"),
    (["run", "--algo", "lora", "--set", "lora.rank=0"], "rank"),
    (["run", "--algo", "full", "--set", "lora.rank=3"], "not run"),
    (["run", "--algo", "lora", "--set", "tokns=3"], "'tokens'"),
    (["run", "--algo", "lora", "--set", "tokens"], "NAME=VALUE"),
    (["run", "--algo", "lora", "--set", "=3"], "NAME=VALUE"),
    (["run", "--algo", "lora", "--tokens", "0"], "tokens"),
    (["run", "--algo", "lora", "--tokens", "many"], "--tokens"),
    (["run", "--algo", "lora", "--memory-budget", "lots"], "4GiB"),
    (["run", "--algo", "lora", "--memory-budget", "0GiB"], "positive"),
    (["run", "--algo", "lora", "--device", "tpu"], "cuda"),
    (["run", "--algo", "lora", "--data", "oasst1"], "--topic"),
    (["run", "--algo", "lora", "--topic", "trians"], "'trains'"),
    (["run", "--algo", "lora", "--topic", "./nowhere.txt"], "./nowhere.txt"),
    (["run", "--algo", "lora", "--data", "sampel", "--topic", "trains"], "'sample'"),
    (["run", "--algo", "lora", "--data", "nowhere.jsonl", "--topic", "trains"], "nowhere.jsonl"),
    (["run", "--algo", "lora", "--model", "smollm-135m-instruct"], "'smollm2-135m-instruct'"),
    (["run", "--algo", "lora", "--model", "./nowhere"], "./nowhere"),
    (["run", "--algo", "lora", "--training-seconds", "0"], "training_seconds"),
    (["run", "--algo", "lora", "--from", "nothing"], "--from nothing"),
    (["run", "--algo", "peft"], "peft:dora"),
    (["run", "--algo", "peft:dorra"], "'dora'"),
    (["run", "--algo", "peft:./nowhere.json"], "nowhere.json"),
    (["run", "--algo", "lora:dora"], "--algo lora"),
    (["run", "--algo", "peft:dora", "--set", "peft:dora.settings=3"], "settings"),
    (["run", "--algo", "peft:dora", "--set", "peft:vera.settings={}"], "not run"),
    (["run", "--algo", "dpo", "--set", "dpo.adapter=lroa"], "'lora'"),
    (["run", "--algo", "dpo", "--set", "dpo.adapter=peft"], "peft:dora"),
    (["run", "--algo", "dpo", "--set", "dpo.adapter=prompt"], "no other loss"),
    (["run", "--algo", "dpo", "--set", "dpo.adapter_options={rnak=3}"], "'rank'"),
    (["run", "--algo", "dpo", "--set", "dpo.loss=sigmod"], "'sigmoid'"),
    (["data", "sampel"], "'sample'"),
    (["recipes", "quik"], "'quick'"),
    (["show", "nothing"], "runs"),
]


@pytest.mark.parametrize(("arguments", "named"), WRONG_USAGE, ids=[" ".join(arguments) for arguments, _ in WRONG_USAGE])
def test_wrong_usage_costs_one_line_that_helps_and_exit_code_2(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a worker was started for a command that cannot be carried out")

    monkeypatch.setattr("subprocess.Popen", refuse)
    code, out, said = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert len(said.splitlines()) == 1, said
    assert "Traceback" not in said
    assert named in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "--algo", "lora", "--device", "cuda"], "no CUDA device here; use --device cpu"),
        (["run", "--algo", "lora", "--set", "device=cuda"], "no CUDA device here; use --device cpu"),
        (["run", "--algo", "lora", "--device", "cuda", "--memory-budget", "80%"], "give the budget in bytes"),
        (["plan", "--algo", "lora", "--set", "device=cuda", "--memory-budget", "80%"], "give the budget in bytes"),
        (["run", "--algo", "lora", "--device", "cpu", "--memory-budget", "1GiB,900TiB"], "is more than the"),
    ],
)
def test_a_device_or_memory_that_is_not_there_costs_one_line_before_anything_is_launched(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("ftbench.execution.machine.visible_cards", list)
    monkeypatch.setattr("subprocess.Popen", pytest.fail)
    code, out, said = call(capsys, *arguments)
    assert (code, out, len(said.splitlines())) == (2, "", 1), said
    assert named in said
    assert not list(tmp_path.iterdir())


def test_unknown_column_costs_one_line_that_names_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(make_run("lora"), tmp_path / "runs")
    code, out, said = call(capsys, "table", "--sort", "adherance")
    assert (code, out, len(said.splitlines())) == (2, "", 1)
    assert "'adherence'" in said


def test_names_are_looked_up_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    arguments = ["run", "--algo", "lora", "--topic", "trians"]
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *arguments], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if not line.startswith("ftbench: ")] == [""]
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback() -> None:
    plain, debug = (ftbench(*flag, "run", "--algo", "lroa") for flag in ([], ["--debug"]))
    assert (plain.returncode, len(plain.stderr.splitlines())) == (2, 1)
    assert "Traceback (most recent call last)" in debug.stderr
    assert "did you mean 'lora'" in debug.stderr


def test_algos_json_is_a_list_of_objects_with_fixed_keys(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, said = call(capsys, "algos", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert (code, said) == (0, "")
    assert {"base", "prompt", "full", "lora"} <= set(rows)
    for row in rows.values():
        assert set(row) == {"name", "summary", "needs", "plugin", "version", "options", "variants"}
        assert row["summary"]
        assert row["needs"] in ("nothing", "demonstrations", "preferences")
    assert rows["lora"]["plugin"] == "ftbench-lora"
    assert rows["lora"]["options"]["rank"] == 16
    assert rows["base"]["options"] == {}
    assert "dora" in rows["peft"]["variants"]


def test_plugins_json_names_what_each_brings(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "plugins", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["ftbench-lora"]["algorithms"] == ["lora"]
    assert rows["ftbench-lora"]["hooks"] == ["ftbench_algorithms"]


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "--help")
    commands = [line.split()[0] for line in out.split("Commands:")[1].splitlines() if line.strip()]
    assert {"run", "table", "report", "show", "algos", "plugins"} <= set(commands)
    for command in commands:
        code, text, _ = call(capsys, command, "--help")
        assert code == 0
        assert "Usage: ftbench" in text


def test_reader_of_a_pipe_that_leaves_early_costs_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m ftbench algos --json | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.stdout == "["
    assert done.stderr == ""
