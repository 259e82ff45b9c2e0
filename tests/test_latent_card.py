"""The script for a card, tried on a tiny model and the processor: its figures are of what they say."""

import math
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(import_module("latent"), "LENGTH", 64)
    module = import_module("latent_card")
    monkeypatch.setattr(module, "CUT", 32)
    monkeypatch.setattr(module, "TIMES", 2)
    return module


def test_both_models_go_on_behind_the_same_context(card: ModuleType, tiny_llama: Path) -> None:
    sizes = card.Sizes(batch=2, context=40)
    row = card.measure_decoding(tiny_llama, "sample", torch.device("cpu"), sizes)
    assert row["context"] == 40
    assert [len(row["tokens_per_second"][who]) for who in ("base", "converted")] == [2, 2]
    assert row["times"] > 0


def test_healing_on_what_is_drawn_meanwhile_brings_the_model_nearer(card: ModuleType, tiny_llama: Path) -> None:
    sizes = card.Sizes(tokens=32 * 40, step_tokens=128, rows=8, rate=2e-4)
    row = card.measure_healing(tiny_llama, "sample", torch.device("cpu"), sizes)
    assert row["tokens"] == 32 * 40
    assert len(row["losses"]) == 10
    assert all(map(math.isfinite, row["losses"]))
    assert row["healed"]["inside"]["kl"] < row["converted"]["inside"]["kl"]
    assert row["ratio"] == row["healed"]["inside"]["perplexity_ratio"]


def test_given_texts_take_turns_with_drawn_ones_and_are_given_four_times(card: ModuleType) -> None:
    texts = card.Alternating([[1], [2]], 20, lambda seed: [[100 + seed], [200 + seed], [300 + seed]])
    assert texts[0] == [1]
    found = [one for begin in range(0, 20, 3) for (one,) in texts[begin : begin + 3]]
    assert len(found) == 20
    assert found[0:16:2] == [1, 2] * 4
    drawn = [*found[1:16:2], *found[16:]]
    assert drawn == [301, 201, 101, 302, 202, 102, 303, 203, 103, 304, 204, 104]
