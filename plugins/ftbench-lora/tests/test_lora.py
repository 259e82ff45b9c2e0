from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ftbench.algorithm import configure
from ftbench.errors import UsageError
from ftbench.models.digest import weights_digest
from ftbench.plugins import load_plugins
from ftbench_lora import Lora
from one_line import one_line
from tiny import load, logits, train


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def linear_layers(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Every layer that multiplies by a matrix, but for the head."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and name != "lm_head"
    }


def test_adapters_change_nothing_before_training(folder: Path) -> None:
    base = logits(load(folder))
    torch.testing.assert_close(logits(configure(Lora, {}).adapt(load(folder), [])), base, rtol=0, atol=0)


def test_only_adapters_are_trainable(folder: Path) -> None:
    model = configure(Lora, {}).adapt(load(folder), [])
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


@pytest.mark.parametrize("rank", [1, 4])
def test_all_linear_layers_but_the_head_have_adapters_of_the_rank(folder: Path, rank: int) -> None:
    base = load(folder)
    expected = set(linear_layers(base))
    # W of n inputs and m outputs gets A, rank x n, and B, m x rank; a Conv1D's weight is n x m.
    parameters = sum(rank * sum(module.get_parameter("weight").shape) for module in linear_layers(base).values())
    model = configure(Lora, {"rank": rank}).adapt(base, [])
    adapted = {
        name.removeprefix("base_model.model.") for name, module in model.named_modules() if hasattr(module, "lora_A")
    }
    assert expected
    assert adapted == expected
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters


def test_what_is_saved_and_loaded_is_the_trained_model(folder: Path, tmp_path: Path) -> None:
    algorithm, base = configure(Lora, {"rank": 4}), load(folder)
    assert isinstance(algorithm, Lora)
    untouched = logits(base)
    model = algorithm.adapt(base, [])
    train(algorithm, model)
    trained = logits(model)
    assert (trained - untouched).abs().max() > 0.01  # or equal logits would say little
    algorithm.save(model, tmp_path / "saved")

    loaded = algorithm.load(tmp_path / "saved", lambda other: load(other or folder))
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-5, atol=1e-5)
    assert type(loaded) is type(load(folder))
    assert set(loaded.state_dict()) == set(load(folder).state_dict())


def test_a_pickle_is_never_read_in_the_place_of_safetensors(folder: Path, tmp_path: Path) -> None:
    algorithm, saved = configure(Lora, {"rank": 4}), tmp_path / "saved"
    algorithm.save(algorithm.adapt(load(folder), []), saved)
    torch.save(load_file(saved / "adapter_model.safetensors"), saved / "adapter_model.bin")
    (saved / "adapter_model.safetensors").unlink()
    with one_line(str(saved), "adapter_model.safetensors is missing"):
        algorithm.load(saved, lambda other: load(other or folder))
    (saved / "adapter_model.safetensors").mkdir()
    with one_line(f"cannot read {saved}", "adapter_model.safetensors: Is a directory"):
        algorithm.load(saved, lambda other: load(other or folder))


def test_training_leaves_the_base_weights_as_they_are(folder: Path) -> None:
    algorithm = configure(Lora, {})
    assert isinstance(algorithm, Lora)
    model = algorithm.adapt(load(folder), [])
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    train(algorithm, model)
    assert all(torch.equal(model.get_parameter(name), before) for name, before in frozen.items())


def test_saved_files_are_safetensors_and_small(folder: Path, tmp_path: Path) -> None:
    algorithm = configure(Lora, {"rank": 1})
    model = algorithm.adapt(load(folder), [])
    trainable = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    algorithm.save(model, tmp_path / "saved")
    files = {path.name: path.stat().st_size for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert set(files) <= {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    assert trainable <= files["adapter_model.safetensors"] < trainable + 8192
    assert files["adapter_model.safetensors"] < (folder / "model.safetensors").stat().st_size / 4


def test_alpha_over_rank_scales_the_adapters(tiny_llama: Path) -> None:
    torch.manual_seed(0)
    model = configure(Lora, {"rank": 4, "alpha": 8.0, "dropout": 0.0}).adapt(load(tiny_llama), [])
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    torch.nn.init.normal_(layer.get_parameter("lora_B.default.weight"))
    a, b = layer.get_parameter("lora_A.default.weight"), layer.get_parameter("lora_B.default.weight")
    x = torch.randn(5, 32)
    expected = x @ layer.get_parameter("base_layer.weight").T + 8.0 / 4 * x @ a.T @ b.T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"rnak": 4}])
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="algorithm 'lora'"):
        configure(Lora, options)


def test_before_training_the_seed_of_an_adapter_has_no_effect_and_afterwards_it_has(folder: Path) -> None:
    algorithm = load_plugins().make("dpo", {"adapter": "lora", "sft_share": 0})

    def adapted(seed: int) -> PreTrainedModel:
        torch.manual_seed(seed)
        return algorithm.adapt(load(folder), [])

    def known(model: PreTrainedModel) -> str:
        return weights_digest(model, algorithm.without_effect(model))

    one, other = adapted(1), adapted(2)
    assert weights_digest(one) != weights_digest(other)
    assert known(one) == known(other)
    changed = adapted(1)
    next(weight for name, weight in changed.named_parameters() if "lora_" not in name).data.add_(1)
    assert known(changed) != known(one)
    for model in (one, other):
        next(weight for name, weight in model.named_parameters() if "lora_B" in name).data.fill_(1.0)
    assert known(one) != known(other)
