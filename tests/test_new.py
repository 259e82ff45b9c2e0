"""What `ftbench new` writes installs, passes its own tests and the contract tests, and runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ftbench.checking.checks import run_checks
from ftbench.checking.subject import Subject
from ftbench.cli import main
from ftbench.errors import UsageError
from ftbench.plugins import load_plugins
from ftbench.registry import Registry
from ftbench.scaffold import write
from ftbench.scaffold.write import check_name, write_plugin
from inner_pytest import run_pytest
from one_line import one_line
from strangers import editable, environment, ftbench


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_plugins()


def put_on_path(folder: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the distribution found as an editable installation is: its sources, and what pip writes of its metadata."""
    editable(folder, site)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.syspath_prepend(str(folder / "src"))


@pytest.mark.parametrize("changes", ["loss", "model", "trainer"])
def test_each_variant_passes_its_own_tests_and_the_contract_tests(
    changes: write.Changes,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_plugin(check_name(f"fresh-{changes}", registry), changes, tmp_path)
    put_on_path(folder, tmp_path / "site", monkeypatch)
    own = run_pytest(folder / "tests", settings=tmp_path / "pytest.ini", monkeypatch=monkeypatch)
    assert own.code == 0
    assert own.of("passed")
    loaded = load_plugins()
    assert not loaded.warnings
    (tmp_path / "check").mkdir()
    outcomes = list(run_checks(Subject(loaded, f"fresh-{changes}", {}, tmp_path / "check")))
    assert not [outcome.text for outcome in outcomes if outcome.verdict == "failed"]
    skipped = {outcome.check.name for outcome in outcomes if outcome.verdict == "skipped"}
    assert skipped == ({"accumulation", "memory", "resumes"} if changes == "trainer" else set())


def test_its_own_pytest_runs_the_contract_tests_beside_its_own(registry: Registry, tmp_path: Path) -> None:
    folder = write_plugin(check_name("fresh-told", registry), "loss", tmp_path)
    site = editable(folder, tmp_path / "site")
    variables = environment(site)
    variables["PYTHONPATH"] = os.pathsep.join([str(folder / "src"), variables["PYTHONPATH"]])
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q"],
        capture_output=True, text=True, check=False, timeout=300, cwd=folder, env=variables,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert "ftbench:fresh-told::options" in listed.stdout
    assert "tests/test_fresh_told.py::" in listed.stdout


def test_it_installs_without_a_network(tmp_path: Path) -> None:
    done = ftbench("new", "my-method", "--out", tmp_path / "made")
    assert done.returncode == 0, done.stderr
    folder, site = tmp_path / "made" / "ftbench-my-method", tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run([*pip, "--target", site, folder], check=True, timeout=300, env=environment())
    listed = ftbench("algos", "--json", plugins=site)
    assert listed.stderr == ""
    (row,) = [row for row in json.loads(listed.stdout) if row["name"] == "my-method"]
    assert (row["plugin"], row["version"]) == ("ftbench-my-method", "0.1.0")


@pytest.mark.parametrize("changes", ["loss", "model", "trainer"])
def test_what_is_written_is_clean(changes: write.Changes, registry: Registry, tmp_path: Path) -> None:
    names = check_name("clean", registry)
    folder = write_plugin(names, changes, tmp_path)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["README.md", "pyproject.toml", "src/ftbench_clean/__init__.py", "tests/test_clean.py"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ftbench-clean"]
    settings = Path(__file__).parents[1] / "pyproject.toml"
    for command in (["check", "--no-cache", "--ignore", "D1,I"], ["format", "--no-cache", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--config", settings, folder], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Upper", "small letters"),
        ("under_score", "small letters"),
        ("-dash", "small letters"),
        ("two--dashes", "small letters"),
        ("end-", "small letters"),
        ("../up", "small letters"),
        ("a/b", "small letters"),
        ("peft:mine", "small letters"),
        ("", "small letters"),
        ("é", "small letters"),
        ("9lives", "small letters"),
        ("a" * 41, "40 characters"),
        ("all", "something else"),
        ("none", "something else"),
        ("true", "Python keeps"),
        ("lora", "from ftbench-lora"),
        ("ftbench-lora", "from ftbench-lora"),
    ],
)
def test_a_name_that_cannot_be_is_a_usage_error(registry: Registry, name: str, words: str) -> None:
    with one_line(words, kind=UsageError):
        check_name(name, registry)


def test_names_follow_from_the_algorithms(registry: Registry) -> None:
    names = check_name("ftbench-my-2nd-method", registry)
    assert (names.algorithm, names.distribution) == ("my-2nd-method", "ftbench-my-2nd-method")
    assert (names.module, names.cls) == ("ftbench_my_2nd_method", "My2ndMethod")


def test_nothing_is_ever_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "ftbench-mine"
    there.mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["new", "mine", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "left as it is" in capsys.readouterr().err
    assert not list(there.iterdir())
    there.rmdir()
    there.symlink_to("nowhere")
    with pytest.raises(SystemExit):
        main(["new", "mine", "--out", str(tmp_path)])
    assert there.is_symlink()


def test_what_cannot_be_written_whole_leaves_nothing(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "sync_folder", full)
    with one_line("No space left on device", "ftbench-mine"):
        write_plugin(check_name("mine", registry), "loss", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mine", "next_one"), [("0.1.0", "0.2"), ("0.12.3", "0.13"), ("1.4.2", "2.0"), ("3.0", "4.0")])
def test_the_range_ends_where_the_contract_may_change(mine: str, next_one: str) -> None:
    assert write.next_version(mine) == next_one
