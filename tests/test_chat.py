"""`ftbench chat`: pieces as they are written, and two runs' answers to the same question."""

import io
import shutil
from pathlib import Path

import pytest

from ftbench.cli.chat import _other
from ftbench.evaluation.generation import generate_replies
from ftbench.models.chat import Turn
from ftbench.recipe import BASELINE
from ftbench.results.result import BaselineFacts
from ftbench.results.store import find_run
from ftbench.serving.sampling import Sampling
from ftbench.serving.served import Served
from ftbench.serving.terminal import Talk, Wishes
from made_results import make_run, store
from serving import serve_tiny
from strangers import ftbench_here


def reply(served: Served, text: str, tokens: int) -> str:
    """What evaluation would record."""
    return generate_replies(served.model, served.chat, [text], tokens, 1, lambda _: None)[0].text


def test_a_reply_comes_in_pieces_that_add_up_to_it(tiny_llama: Path) -> None:
    served = serve_tiny(tiny_llama, "base")
    talk = Talk(served)
    pieces = talk.ask("Tell me more", Wishes(Sampling(0.0, 1.0, None), 24))
    first = next(pieces)
    assert talk.turns == []  # it is shown before the reply has ended
    rest = list(pieces)
    assert len(rest) > 1
    whole = "".join([first, *rest])
    assert whole == reply(served, "Tell me more", 24)
    assert talk.turns == [Turn("user", "Tell me more"), Turn("assistant", whole)]


def test_what_is_piped_in_is_answered_by_both_runs(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"prompt": serve_tiny(tiny_llama, "prompt", system="Boats."), "base": serve_tiny(tiny_llama, "base")}
    for name in models:
        store(make_run(name, model=str(tiny_llama)), tmp_path / "runs", name)
    monkeypatch.setattr("ftbench.cli.chat._load", lambda runs, _: [Talk(models[run.folder.name]) for run in runs])
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n/new\n\nwho are you?\n"))
    done = ftbench_here("chat", "prompt", "--against", "base", "--max-tokens", "12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [(name, reply(served, text, 12)) for text in ("hi", "who are you?") for name, served in models.items()]
    assert len({text for _, text in said}) > 2  # or the comparison would say little
    assert done.stdout == "".join(f"{name}:\n{text}\n\n" for name, text in said)


def test_a_run_that_is_loaded_is_the_one_that_was_measured(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(make_run("prompt", model=str(tiny_llama), facts={"system_prompt": "Boats."}), tmp_path / "runs", "prompt")
    asked: list[str | None] = []
    ask = Talk.ask

    def listened(talk: Talk, *arguments: object) -> object:
        asked.append(talk.served.chat.system)
        return ask(talk, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Talk, "ask", listened)
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert ftbench_here("chat", "prompt", "--max-tokens", "2", cwd=tmp_path).returncode == 0
    assert asked == ["Boats."]


def test_against_base_is_the_run_that_it_was_measured_against(tmp_path: Path) -> None:
    measured = BaselineFacts(run="base-of-then", recipe_digest="0" * 64, started="2026-01-01T00:00:01.000+00:00")
    store(make_run("base", started=1), tmp_path, "base-of-then")
    store(make_run("base", started=9), tmp_path, "base-of-now")
    store(make_run("lora", facts={"baseline": measured}), tmp_path, "lora")
    store(make_run("dpo"), tmp_path, "dpo")
    lora, dpo = find_run("lora", tmp_path), find_run("dpo", tmp_path)
    assert _other(BASELINE, lora, tmp_path).folder.name == "base-of-then"
    assert _other("dpo", lora, tmp_path).folder.name == "dpo"
    assert _other(BASELINE, dpo, tmp_path).folder.name == "base-of-now"  # measured against none: the newest
    shutil.rmtree(tmp_path / "base-of-then")
    assert _other(BASELINE, lora, tmp_path).folder.name == "base-of-now"
