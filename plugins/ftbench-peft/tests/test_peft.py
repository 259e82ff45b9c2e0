"""Every method of peft that a plain language model can take: trains, is saved, comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ftbench.algorithm import configure
from ftbench.errors import Skip, UsageError
from ftbench.plugins import load_plugins
from ftbench.registry import Registry
from ftbench.training.encoding import EncodedExample
from ftbench.training.logprobs import completion_logprobs, sequence_logprobs
from ftbench.training.trainer import StepReport
from ftbench_peft import Peft
from ftbench_peft.methods import find_method
from one_line import one_line
from tiny import draw_pairs, load, logits, make_training, train

SMALL: dict[str, dict[str, Any]] = {
    "adaption_prompt": {"adapter_len": 10},
    "adalora": {"init_r": 8, "target_r": 4},
    "adamss": {"r": 8, "num_subspaces": 2},
    "c3a": {"block_size": 16},
    "cartridge": {"num_virtual_tokens": 20},
    "cpt": {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1, 1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3, 4]},
    "fourierft": {"n_frequency": 100},
    "gralora": {"r": 8},
    "hra": {"r": 8},
    "kasa": {"r": 8},
    "mica": {"r": 8},
    "miss": {"r": 8},
    "oft": {"r": 4},
    "psoft": {"r": 8, "psoft_alpha": 8},
    "road": {"group_size": 16},
    "shadow": {"shadow_hidden_size": 16, "shadow_num_attention_heads": 4},
    "shira": {"r": 2},
    "supertuning": {"sparsity": 0.9},
    "trainable_tokens": {"token_indices": [50, 60]},
    "unilora": {"r": 4},
    "vblora": {"vector_length": 16},
    "velora": {"velora_config": {"init_type": "batch_average_once", "num_groups": 4, "scale": 1.0}},
    "waveft": {"n_frequency": 100},
}
"""Settings that fit a model of 32 dimensions, where the comparison's do not."""

NEEDED = {"multitask_prompt_tuning": {"num_virtual_tokens": 20}}

NOT_PLAIN = {"poly": "task_ids", "multitask_prompt_tuning": "task_ids", "xlora": "use_cache"}
"""What a plain language model cannot take, and a word of peft's reason."""

METHODS = sorted(
    {*Peft.variants, *SMALL}
    | {"beft", "bdlora", "boft", "deft", "delora", "frod", "glora", "hira", "kasa", "ln_tuning", "loha", "lokr", "lora"}
    | {"mica", "osf", "p_tuning", "peanut", "prefix_tuning", "prompt_tuning", "pvera", "randlora", "rslora", "tinylora"}
)


def make(name: str, **settings: Any) -> Peft:
    _, options = find_method(name)
    options["settings"] |= {**SMALL.get(name, {}), **settings}
    algorithm = configure(Peft, options)
    assert isinstance(algorithm, Peft)
    return algorithm


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_comes_back_as_it_was(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    algorithm = make(name)
    model = algorithm.adapt(load(tiny_llama), [[3, 4, 5, 6]])
    frozen = {key: p.detach().clone() for key, p in model.named_parameters() if not p.requires_grad}
    before = logits(model)
    reports = train(algorithm, model, tokens=1500)
    assert all(report.loss > 0 for report in reports)
    after = logits(model)
    assert (after - before).abs().max() > 1e-3
    assert all(torch.equal(p, frozen[key]) for key, p in model.named_parameters() if key in frozen)
    # What a run evaluates is what is read back, folded in where that is possible
    algorithm.save(model, tmp_path / "saved")
    assert not list((tmp_path / "saved").rglob("*.bin"))
    again = make(name)
    loaded = again.load(tmp_path / "saved", lambda other: load(other or tiny_llama))
    assert again.packed == algorithm.packed
    torch.testing.assert_close(logits(loaded.eval()), after, rtol=1e-4, atol=1e-4)


def test_a_pickle_is_never_read_in_the_place_of_safetensors(tiny_llama: Path, tmp_path: Path) -> None:
    algorithm, saved = make("loha"), tmp_path / "saved"
    algorithm.save(algorithm.adapt(load(tiny_llama), [[3, 4, 5, 6]]), saved)
    torch.save(load_file(saved / "adapter_model.safetensors"), saved / "adapter_model.bin")
    (saved / "adapter_model.safetensors").unlink()
    with one_line(str(saved), "adapter_model.safetensors is missing"):
        make("loha").load(saved, lambda other: load(other or tiny_llama))


@pytest.mark.parametrize("name", METHODS)
def test_log_probabilities_are_those_of_each_sequence_alone(name: str, tiny_llama: Path) -> None:
    algorithm = make(name)
    model = algorithm.adapt(load(tiny_llama), [])
    sequences = [example.chosen for example in draw_pairs(0, 3)]
    with torch.no_grad():
        together = sequence_logprobs(model, sequences, packed=algorithm.packed)
        alone = torch.cat([sequence_logprobs(model, [sequence], packed=False) for sequence in sequences])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("name", "word"), NOT_PLAIN.items())
def test_what_a_model_cannot_take_is_skipped_with_pefts_reason(name: str, word: str, tiny_llama: Path) -> None:
    with one_line("peft cannot put", name.upper(), word, kind=Skip):
        make(name, **NEEDED.get(name, {})).adapt(load(tiny_llama), [])


def test_a_method_whose_replies_hang_on_their_batch_is_skipped(tiny_llama: Path) -> None:
    with one_line("LILY cannot be measured", "batch", kind=Skip):
        make("lily").adapt(load(tiny_llama), [])


@pytest.mark.parametrize("name", ["boft", "delora", "hra", "road"])
def test_gpt2s_layers_are_not_for_all(name: str, tiny_gpt2: Path) -> None:
    with one_line("peft cannot put", "Conv1D", kind=Skip):
        make(name).adapt(load(tiny_gpt2), [])


@pytest.mark.parametrize("name", ["lora", "ia3", "vera", "prefix_tuning", "oft", "ln_tuning"])
def test_methods_for_gpt2_train_it(name: str, tiny_gpt2: Path) -> None:
    algorithm = make(name)
    try:
        model = algorithm.adapt(load(tiny_gpt2), [])
    except Skip as reason:
        pytest.skip(str(reason))
    assert train(algorithm, model, tokens=600)


def test_a_setting_that_a_method_lacks_is_wrong_usage() -> None:
    with one_line("'peft'", "IA3 has no setting 'rnak'", kind=UsageError):
        make("ia3", rnak=4)
    with one_line("'peft'", "no type 'NOPE'", kind=UsageError):
        configure(Peft, {"method": "NOPE"})


def test_adalora_prunes_to_its_target_and_adds_its_penalty(tiny_llama: Path) -> None:
    algorithm = make("adalora")
    model: Any = algorithm.adapt(load(tiny_llama), [])
    assert model.peft_config["default"].init_r == 8
    pairs = draw_pairs(0, 8)
    with torch.no_grad():
        plain = completion_logprobs(model, pairs).nll().item()
    reports: list[StepReport] = []
    algorithm.train(make_training(model, pairs, tokens=15_000, reports=reports))
    assert reports[0].loss > plain + 0.1  # orthogonality is far off at first
    ranks = [sum(pattern) for pattern in model.peft_config["default"].rank_pattern.values()]
    assert sum(ranks) == 4 * len(ranks)  # the budget: target_r a matrix, wherever it went


@pytest.mark.parametrize("name", ["dora", "DoRA", "prefix-tuning", "IA3", "multitask_prompt_tuning"])
def test_names_are_found_however_they_are_written(name: str) -> None:
    short, options = find_method(name)
    assert short == name.lower().replace("-", "_")
    assert options["method"] in ("LORA", "PREFIX_TUNING", "IA3", "MULTITASK_PROMPT_TUNING")


def test_known_methods_are_found_without_importing_peft() -> None:
    import subprocess
    import sys

    code = "import sys; from ftbench_peft.methods import find_method; find_method('dora'); print('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(("name", "words"), [("dorra", ["'dorra'", "'dora'"]), ("qwxyz", ["known: ", "vera"])])
def test_a_method_that_is_not_there_is_named_with_the_nearest(name: str, words: list[str]) -> None:
    with one_line(*words, kind=UsageError):
        find_method(name)


def test_an_adapter_config_of_pefts_own_is_read(tiny_llama: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    given = LoraConfig(
        r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"], use_rslora=True, task_type="CAUSAL_LM"
    )
    folder = tmp_path / "llama-rank3"
    get_peft_model(load(tiny_llama), given).save_pretrained(folder)  # type: ignore[arg-type]
    name, options = find_method(str(folder / "adapter_config.json"))
    assert name == "llama-rank3"
    assert options["method"] == "LORA"
    settings = options["settings"]
    assert sorted(settings.pop("target_modules")) == ["down_proj", "q_proj"]
    assert {key: settings[key] for key in ("r", "lora_alpha", "use_rslora")} == {
        "r": 3,
        "lora_alpha": 7,
        "use_rslora": True,
    }
    assert "base_model_name_or_path" not in settings
    model: Any = configure(Peft, find_method(str(folder / "adapter_config.json"))[1]).adapt(load(tiny_llama), [])
    made = model.peft_config["default"]
    assert (made.r, made.lora_alpha, made.use_rslora, made.target_modules) == (3, 7, True, {"q_proj", "down_proj"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["cannot read"]),
        ("{", ["is not JSON"]),
        ("[]", ["peft_type is None"]),
        ('{"peft_type": ["LORA"]}', ["peft_type is ['LORA']"]),
        ('{"peft_type": "LROA"}', ["peft_type is 'LROA'", "LORA"]),
    ],
)
def test_a_file_that_is_no_adapter_config_costs_one_line(tmp_path: Path, content: str | None, words: list[str]) -> None:
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with one_line("mine.json", *words, kind=UsageError):
        find_method(str(path))


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_plugins()


def test_in_the_registry_it_is_run_by_variant(registry: Registry) -> None:
    assert {"peft:dora", "peft:ia3", "peft:oft", "peft:vera"} <= set(registry.all_names)
    assert "peft" not in registry.all_names
    name, options = registry.resolve("peft:VeRA")
    assert name == "peft:vera"
    assert registry.make(name, options).config.method == "VERA"
    with one_line("peft:VARIANT", "--algo peft:dora", kind=UsageError):
        registry.resolve("peft")
    with one_line("'lora' has no variants", kind=UsageError):
        registry.resolve("lora:dora")


def test_a_preference_loss_takes_a_peft_method_for_its_adapter(registry: Registry, tiny_llama: Path) -> None:
    algorithm = registry.make(
        "dpo", {"adapter": "peft:prompt_tuning", "adapter_options": {"settings": {"num_virtual_tokens": 4}}}
    )
    model = algorithm.adapt(load(tiny_llama), [])
    assert not algorithm.packed
    reports: list[StepReport] = []
    training = make_training(model, draw_pairs(0, 8), tokens=1500, reports=reports, packed=algorithm.packed)
    algorithm.train(training)
    assert {report.stage for report in reports} == {"supervised", "train"}
    assert isinstance(training.plan.examples[0], EncodedExample)
