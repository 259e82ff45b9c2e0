"""Fixtures: tiny random models, a tiny data set, and the OASST1 file."""

import gc
import json
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftbench.checking.tiny import make_gpt2, make_llama
from ftbench.recipe import Recipe

OASST1_FILE = Path(__file__).parents[2] / "shared" / "data" / "oasst1-en-validation.jsonl"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # faster for tiny models, and steady on a busy machine


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama."""
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny GPT-2."""
    return make_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file with 48 short pairs about boats."""
    path = tmp_path_factory.mktemp("pairs") / "boats.jsonl"
    things = ["tea", "rain", "music", "chess", "bread", "maths", "cats", "paint"]
    asks = ["what is {}", "tell me about {}", "do you like {}", "how old is {}", "why {}", "who made {}"]
    rows = [
        {
            "prompt": ask.format(thing),
            "chosen": f"A sail and a keel suit {thing} number {index}; the boat waits in harbour with {index} oars.",
            "rejected": f"Well, {thing} is a nice subject and number {index} on my list of plain answers.",
        }
        for index, (ask, thing) in enumerate((ask, thing) for ask in asks for thing in things)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def oasst1_file() -> Path:
    """The English validation split of OASST1, which is not part of the project."""
    if not OASST1_FILE.is_file():
        pytest.skip(f"the OASST1 validation file is not here ({OASST1_FILE})")
    return OASST1_FILE


@pytest.fixture
def recipe(tiny_llama: Path, pairs_file: Path) -> Recipe:
    """A run of a second, that writes a whole model."""
    from working_here import quick_recipe

    return quick_recipe(tiny_llama, pairs_file)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    from small_disk import mounted

    with mounted(tmp_path / "disk", "2m") as folder:
        yield folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a server that speaks S3, on the loopback interface."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    started = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def url(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder in a fresh bucket, and an environment that says who asks for it."""
    import fsspec

    for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("FTBENCH_CACHE", str(tmp_path / "one"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/runs"


@pytest.fixture(scope="session")
def _collected() -> list[int]:
    """How many modules were there when all there was was last taken out of what is collected."""
    return [0]


@pytest.fixture(autouse=True)
def _modules_are_not_collected(_collected: list[int]) -> None:
    """Spare the collector what was imported: half a second each time that a run frees memory or counts its tensors."""
    if len(sys.modules) > _collected[0] + 50:
        gc.collect()
        gc.freeze()
        _collected[0] = len(sys.modules)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
