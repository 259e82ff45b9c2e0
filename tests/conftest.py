"""Fixtures: tiny random models, a tiny data set, and the OASST1 file."""

import json
import os
from pathlib import Path

import pytest

from ftbench.checking.tiny import make_gpt2, make_llama

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


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
