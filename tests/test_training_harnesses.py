"""What measures the training core does train, ours and TRL's the same; the scripts are in benchmarks/."""

import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STEPS = 3


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    state = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield import_module("training")
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def case_of(model: Path, algorithm: str, whose: str) -> dict[str, Any]:
    facts = {"device": "cpu", "precision": "float32", "steps": STEPS, "model": str(model)}
    return {**facts, "algorithm": algorithm, "whose": whose}


@pytest.mark.parametrize("algorithm", ["full", "lora", "dpo", "orpo"])
def test_both_sides_train_on_the_same(algorithm: str, training: ModuleType, tiny_llama: Path) -> None:
    ours, trl = (training._measure(case_of(tiny_llama, algorithm, whose), "sample") for whose in ("ours", "trl"))
    for row in (ours, trl):
        assert len(row["losses"]) == STEPS
        assert all(map(math.isfinite, row["losses"]))
        assert row["tokens_per_second"] > 0
        assert row["peak_bytes"] > 0
    if algorithm != "orpo":  # whose part of NLL is over the prompt, too, in TRL's
        assert ours["losses"][0] == pytest.approx(trl["losses"][0], rel=1e-3)


def test_the_references_time_counts(training: ModuleType, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = {"reference": 0.0, "train": 1000.0}
    monkeypatch.setattr(
        training.Uncounted, "expect", lambda self, stage, *_, **__: self.began.update({stage: began[stage]})
    )
    row = training._measure(case_of(tiny_llama, "dpo", "ours"), "sample")
    assert row["tokens_per_second"] == pytest.approx(row["tokens"] / 1000, rel=0.05)


@pytest.mark.parametrize("algorithm", ["full", "lora"])
def test_the_bare_loop_trains_on_the_same(algorithm: str, training: ModuleType, tiny_llama: Path) -> None:
    harness = import_module("harness")
    case, losses = case_of(tiny_llama, algorithm, "ours"), list[float]()
    training.prepare(case, "sample", lambda step: losses.append(step.loss))[0]()
    bare = harness.bare_losses(case, "sample")
    assert bare[0] == pytest.approx(losses[0], rel=1e-5)  # later ones hang on the rate, which there is steady
    assert len(bare) == len(losses) == STEPS
    for bare_first in (False, True):
        pairs = harness.in_turn(case, "sample", bare_first=bare_first)
        assert len(pairs) == STEPS - 1
        assert all(seconds > 0 for pair in pairs for seconds in pair)
