"""The tutorial of the documentation, gone through from `ftbench new` to a row of the table."""

import os
import re
import shlex
from pathlib import Path

import pytest

from ftbench.cli import main
from inner_pytest import run_pytest
from strangers import editable, ftbench

PAGE = Path(__file__).parents[1] / "docs" / "writing.md"
TEXT = PAGE.read_text("utf-8")
BLOCK = r"^```\{code-block\} \w+\n:caption: [`\"]*([^\n`\"]+)[`\"]*\n\n(.*?)^```$"
BLOCKS = dict(re.findall(BLOCK, TEXT, re.DOTALL | re.MULTILINE))
MODULE, TEST = (f"ftbench-cpo/{path}" for path in ("src/ftbench_cpo/__init__.py", "tests/test_cpo.py"))


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def call(line: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line)[1:])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_its_commands_are_these() -> None:
    """What the test below goes through, one by one."""
    assert commands() == [
        "ftbench new cpo",
        'pip install -e "./ftbench-cpo[test]"',
        "ftbench algos",
        "ftbench check cpo",
        "ftbench run --algo cpo",
        "ftbench table",
    ]


def test_who_follows_it_gets_a_row_of_the_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_llama: Path,
    pairs_file: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("ftbench new cpo") == 0
    assert all((tmp_path / path).is_file() for path in (MODULE, TEST))  # so that the reader replaces, and adds nothing
    for path in (MODULE, TEST):
        (tmp_path / path).write_text(BLOCKS[path], "utf-8")
    site = editable(tmp_path / "ftbench-cpo", tmp_path / "site")
    for place in (tmp_path / "ftbench-cpo" / "src", site):
        monkeypatch.syspath_prepend(str(place))
    capsys.readouterr()
    assert call("ftbench algos") == 0
    assert "cpo" in capsys.readouterr().out
    own = run_pytest(tmp_path / TEST, settings=tmp_path / "pytest.ini", monkeypatch=monkeypatch)
    assert (own.code, len(own.of("passed"))) == (0, 1)
    capsys.readouterr()
    assert call("ftbench check cpo") == 0, capsys.readouterr().out
    capsys.readouterr()

    import ftbench_cpo  # type: ignore[import-not-found]

    wrong = BLOCKS[MODULE].replace(last_return(BLOCKS[MODULE]), BLOCKS["the mistake"])
    assert wrong != BLOCKS[MODULE]
    exec(compile(wrong, "mistake", "exec"), ftbench_cpo.__dict__)
    assert call("ftbench check cpo") == 1
    said = re.sub(r" \(\d+\.\d s\)", "", capsys.readouterr().out)
    assert " ".join(BLOCKS["what is said of it"].split()) in " ".join(said.split())

    tiny: list[str | Path] = ["--model", tiny_llama, "--data", pairs_file, "--topic", "boats", "--tokens", "2000"]
    small = ["--set", "max_new_tokens=8", "--set", "attack_prompts=0", "--set", "checkpoints=0"]
    here = [str(tmp_path / "ftbench-cpo" / "src"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, here)))
    done = ftbench("run", "--algo", "cpo", *tiny, *small, plugins=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert call("ftbench table") == 0
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert ["cpo", "ok"] in [[cell.strip() for cell in row] for row in rows]


def last_return(text: str) -> str:
    return next(line for line in reversed(text.splitlines(keepends=True)) if "return logprobs" in line)


def test_the_recent_method_that_it_shows_is_of_forty_lines_at_most() -> None:
    (shown,) = re.findall(r"^```\{literalinclude\} (.+)$", TEXT, re.MULTILINE)
    text = (PAGE.parent / shown).read_text("utf-8")
    assert "arXiv:2502.00883" in text
    assert len(text.splitlines()) <= 40
