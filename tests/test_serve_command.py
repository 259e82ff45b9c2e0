"""`ftbench serve` in a process of its own, and what it and `ftbench chat` refuse."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ftbench.cli import main
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_tokenizer
from made_results import make_run, store
from strangers import command_line, environment


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A run of the untouched model, one that failed, and one whose model is gone."""
    folder = tmp_path_factory.mktemp("served")
    store(make_run("base", model=str(tiny_llama)), folder, "base")
    store(make_run("prompt", model=str(tiny_llama), facts={"system_prompt": "Boats."}), folder, "prompt")
    store(make_run("lora", model=str(tiny_llama), status="failed", reason="x"), folder, "failed")
    store(make_run("lora", model=str(tiny_llama)), folder, "lora")
    return folder


def wrong(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    assert ended.value.code in (1, 2)
    lines = [line for line in said.err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1, said.err
    return lines[0]


@pytest.mark.parametrize("command", ["serve", "chat"])
@pytest.mark.parametrize(("run", "named"), [("nothing", "nothing"), ("failed", "failed"), ("lora", "no saved model")])
def test_what_has_no_model_is_refused_in_a_line(
    command: str, run: str, named: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = ["--port", "0"] if command == "serve" else []
    assert named in wrong(capsys, command, str(out / run) if run != "nothing" else run, "--out", str(out), *port)


def test_a_port_that_is_taken_is_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        line = wrong(capsys, "serve", "base", "--out", str(out), "--port", port)
    assert port in line
    assert "--port" in line


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--host", "::"], ["--api-key", "no\nkey"]])
def test_other_machines_need_a_key(
    arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FTBENCH_API_KEY", raising=False)
    assert "key" in wrong(capsys, "serve", "base", "--out", str(out), *arguments)


@pytest.fixture(scope="module")
def address(out: Path) -> Iterator[str]:
    """A server of two runs, which must end by itself when it is told to."""
    command = command_line("serve", "base", "prompt", "--out", str(out), "--port", "0")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=out
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.stderr and process.stderr.read()
        try:
            yield line.split("/ ")[0]
        finally:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert err.splitlines()[-1] == "stopped"
    assert "Traceback" not in err


def test_a_server_serves_its_runs_under_their_names(address: str, out: Path, tiny_llama: Path) -> None:
    assert [model["id"] for model in httpx.get(f"{address}/v1/models").json()["data"]] == ["base", "prompt"]
    used = {}
    for name in ("base", "prompt"):
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        used[name] = httpx.post(f"{address}/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    tokenizer = load_tokenizer(tiny_llama)
    assert used["base"] == len(ChatFormat(tokenizer).prompt_ids("hi"))
    assert used["prompt"] == len(ChatFormat(tokenizer, "Boats.").prompt_ids("hi"))


def test_schemathesis_finds_nothing(address: str) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    statuses = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=15,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(case=operation.as_strategy())
        def call(case: Any) -> None:
            response = case.call(timeout=20)
            statuses.add(response.status_code)
            assert response.status_code < 500
            if response.status_code >= 400:
                assert set(json.loads(response.content)["error"]) == {"message", "type", "param", "code"}

        call()
    assert {200, 400, 404} <= statuses
