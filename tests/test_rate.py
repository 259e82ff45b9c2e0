"""The share of a device's matrix rate that training reaches: what is counted is what a counter of operations finds."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from ftbench.models.skeleton import load_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def rate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("rate")


def test_a_share_is_measured(rate: ModuleType, tiny_llama: Path) -> None:
    case = {"device": "cpu", "length": 32, "batch": 4, "micro_batch": 2, "steps": 5, "checkpointing": False}
    row = rate.measure(tiny_llama, case)
    assert 0 < row["share"] < 1
    assert row["used"] == pytest.approx(row["share"] * row["rate"])
    assert row["tokens_per_second"] > 0


def test_the_operations_of_training_are_counted(rate: ModuleType, tiny_llama: Path) -> None:
    model: Any = AutoModelForCausalLM.from_config(load_config(tiny_llama), attn_implementation="eager").train()
    length = 64
    ids = torch.arange(length)[None] % 32
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.float().logsumexp(-1).sum().backward()
    whole = rate.needed(model, length) * length
    config = model.config
    unseen = 3 * 2 * config.num_hidden_layers * config.hidden_size * length * length  # eager attention computes it, too
    assert counter.get_total_flops() == pytest.approx(whole + unseen, rel=0.01)
