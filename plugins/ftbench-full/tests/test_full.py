from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from ftbench.algorithm import configure
from ftbench.errors import UsageError
from ftbench_full import Full
from tiny import load, logits, train


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def trained(folder: Path) -> PreTrainedModel:
    algorithm = configure(Full, {})
    model = algorithm.adapt(load(folder), [])
    train(algorithm, model)
    return model


def test_every_weight_is_trained(folder: Path) -> None:
    before, after = load(folder), trained(folder)
    assert all(parameter.requires_grad for parameter in after.parameters())
    same = {name for name, p in after.named_parameters() if torch.equal(p, before.get_parameter(name))}
    assert same == set()


def test_what_is_saved_and_loaded_is_the_trained_model(folder: Path, tmp_path: Path) -> None:
    algorithm, model = configure(Full, {}), trained(folder)
    algorithm.save(model, tmp_path / "saved")
    loaded = algorithm.load(tmp_path / "saved", lambda other: load(other or folder))
    assert (logits(model) - logits(load(folder))).abs().max() > 0.01  # or equal logits would say little
    assert torch.equal(logits(loaded), logits(model))


def test_saved_weights_are_safetensors(folder: Path, tmp_path: Path) -> None:
    configure(Full, {}).save(load(folder), tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert names == {"model.safetensors", "config.json", "generation_config.json"}


def test_the_learning_rate_is_its_one_option() -> None:
    assert configure(Full, {}).config.learning_rate == 1.5e-4
    assert configure(Full, {"learning_rate": 1e-6}).config.learning_rate == 1e-6
    with pytest.raises(UsageError, match="algorithm 'full' has no option 'rank'"):
        configure(Full, {"rank": 4})
