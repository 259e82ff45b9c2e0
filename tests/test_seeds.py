"""A seed decides how an adapter starts, whatever else a run drew before."""

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ftbench.execution.fitting import encode_training
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.training.encoding import Encoded
from strangers import install
from tiny import load
from working_here import run

TOO_SLOW_TO_MOVE = 1e-30
DRAWS = """
import random
import ftbench
import numpy as np
import torch

class Draws(ftbench.Algorithm):
    name = "draws"
    drawn = []
    def adapt(self, model, calibration):
        self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return model

@ftbench.hookimpl
def ftbench_algorithms():
    return [Draws]
"""


def test_every_generator_is_seeded_before_an_algorithm_draws(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path / "site", "draws-much", DRAWS)))
    asked = recipe.change(algorithm="draws")
    run(asked, tmp_path / "runs")

    def encode(*arguments: Any) -> Encoded:
        random.random()
        np.random.rand()
        torch.rand(1)
        return encode_training(*arguments)

    monkeypatch.setattr("ftbench.execution.phases.encode_training", encode)
    run(asked, tmp_path / "again")
    run(asked.change(seed=5), tmp_path / "other")
    first, again, other = sys.modules["draws_much"].Draws.drawn
    assert first == again
    assert not set(first) & set(other)


@pytest.mark.parametrize("seed", [0, 7])
def test_an_adapter_starts_as_its_seed_says(
    seed: int, recipe: Recipe, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(*arguments: Any) -> Encoded:
        torch.rand(100)
        return encode_training(*arguments)

    monkeypatch.setattr("ftbench.execution.phases.encode_training", encode)
    lora = recipe.change(algorithm="lora", options={"learning_rate": TOO_SLOW_TO_MOVE}, seed=seed)
    saved = load_file(run(lora, tmp_path / "runs").folder / "model" / "adapter_model.safetensors")
    torch.manual_seed(seed)
    expected = load_plugins().make("lora", {}).adapt(load(tiny_llama), [])
    starts = {name: weight for name, weight in saved.items() if "lora_A" in name}
    assert starts
    for name, weight in starts.items():
        own = expected.get_parameter(name.replace("lora_A.weight", "lora_A.default.weight"))
        torch.testing.assert_close(weight, own.detach())
