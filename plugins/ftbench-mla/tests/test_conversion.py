"""What must hold of a conversion, on random models of every family with biases that are not zero."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    StaticCache,
)

from ftbench.algorithm import configure
from ftbench.models.attention import is_packed
from ftbench.models.decoding import Decoder
from ftbench.models.loading import prepare
from ftbench_mla import Mla, Settings, convert
from ftbench_mla.conversion import convert_keeping
from ftbench_mla.family import UnconvertibleError

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "bos_token_id": 0,
    "eos_token_id": 63,
    "pad_token_id": 63,
}
GROUPED = {**SIZE, "num_key_value_heads": 2}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512}
CONFIGS: dict[str, Any] = {
    "mha": LlamaConfig(**SIZE, num_key_value_heads=4, attention_bias=True),
    "gqa": LlamaConfig(**GROUPED),
    "yarn": LlamaConfig(**GROUPED, rope_parameters=YARN),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
    "qwen2": Qwen2Config(**GROUPED),
    "gpt2": GPT2Config(
        n_embd=32,
        n_head=4,
        n_layer=2,
        vocab_size=64,
        bos_token_id=0,
        eos_token_id=63,
        scale_attn_by_inverse_layer_idx=True,
    ),
}
ROTATED = [name for name in CONFIGS if name != "gpt2"]


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name]), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def texts(count: int = 20, length: int = 40) -> list[list[int]]:
    torch.manual_seed(1)
    return torch.randint(1, 62, (count, length)).tolist()


def exact(name: str, mode: str) -> Settings:
    """Settings under which nothing is lost."""
    keys = {"mha": 32, "gpt2": 32}.get(name, 16)
    if name == "gpt2" or mode == "exact-rope":
        return Settings(mode="exact-rope" if name != "gpt2" else "absorbable", rank=min(2 * keys, 32))
    return Settings(rank=keys, rope_dims=keys)


def log_probs(model: Any, ids: Tensor, **given: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **given).logits.double().log_softmax(-1)  # type: ignore[no-any-return]


CASES = [(name, mode) for name in ROTATED for mode in ("absorbable", "exact-rope")] + [("gpt2", "absorbable")]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_with_full_rank_nothing_is_lost(name: str, mode: str) -> None:
    model, ids = build(name), torch.randint(1, 62, (3, 30))
    converted: Any = convert(deepcopy(model), texts(), exact(name, mode))
    assert (log_probs(converted, ids) - log_probs(model, ids)).abs().max() < 2e-4
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    given: Any = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    for beams in (1, 3):
        assert torch.equal(
            converted.generate(ids, num_beams=beams, **given), model.generate(ids, num_beams=beams, **given)
        )


@pytest.mark.parametrize("recipe", ["fisher", "transmla", "mha2mla", "plain"])
def test_mixing_and_choosing_lose_nothing_by_themselves(recipe: Any) -> None:
    model, ids = build("qwen2", torch.float64), torch.randint(1, 62, (2, 20))
    converted = convert(deepcopy(model), texts(), Settings(recipe=recipe, rank=16, rope_dims=16))
    assert (log_probs(converted, ids) - log_probs(model, ids)).abs().max() < 1e-9


def test_half_the_cache_of_gpt2_is_redundant_and_not_one_dimension_more() -> None:
    model, ids = build("gpt2", torch.float64), torch.randint(1, 62, (2, 20))
    whole = convert(deepcopy(model), texts(), Settings(rank=32))
    assert (log_probs(whole, ids) - log_probs(model, ids)).abs().max() < 1e-10
    less = convert(deepcopy(model), texts(), Settings(rank=31))
    assert (log_probs(less, ids) - log_probs(model, ids)).abs().max() > 1e-4


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_every_way_to_generate_agrees_and_the_cache_holds_only_the_latent(name: str, mode: Any) -> None:
    model: Any = convert(build(name), texts(), Settings(kv=0.4, mode=mode))
    ids = torch.randint(1, 62, (2, 9))
    given: Any = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    found = model.generate(ids, return_dict_in_generate=True, **given)
    for others in ({"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(ids, **given, **others), found.sequences)
    held = [layer.keys.numel() + layer.values.numel() for layer in found.past_key_values.layers]
    sizes = [rank + turned for rank, turned in zip(model.config.latent_ranks, model.config.latent_rotated, strict=True)]
    assert held == [2 * 16 * size for size in sizes]
    padded = torch.cat([torch.full((2, 3), 5), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    assert torch.equal(model.generate(padded, **{**given, "attention_mask": mask})[:, 12:], found.sequences[:, 9:])
    torch.manual_seed(0)
    drawn = model.generate(ids, **{**given, "do_sample": True})
    assert drawn.shape == (2, 17)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_step_by_step_the_logits_are_those_of_the_whole(name: str, mode: Any) -> None:
    model = convert(build(name), texts(), Settings(kv=0.4, mode=mode))
    ids = torch.randint(1, 62, (2, 9))
    whole, cache = log_probs(model, ids), StaticCache(config=model.config, max_cache_len=12)
    parts = [log_probs(model, part, past_key_values=cache) for part in ids.split([4, 1, 3, 1], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_rows_that_end_at_different_times_are_written_as_the_whole_says(name: str, mode: Any) -> None:
    model: Any = convert(prepare(build(name)), texts(), Settings(kv=0.4, mode=mode))
    assert is_packed(model)
    decoder = Decoder(model)
    read = {row: (prompt, [logits]) for prompt in texts(3, 9) for row, logits in [decoder.read(prompt)]}
    living = dict(read)
    for last in [False, True, False, True, False, False]:  # in the end one row is alone
        found = decoder.write({row: int(logits[-1].argmax()) for row, (_, logits) in living.items()})
        for row, logits in found.items():
            living[row][1].append(logits)
        if last:
            row, _ = living.popitem()
            decoder.drop(row)
    assert len(living) == 1
    for prompt, told in read.values():
        said = [int(one.argmax()) for one in told]
        whole = model(input_ids=torch.tensor([prompt + said[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
        torch.testing.assert_close(torch.stack(told), whole.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_saved_and_reloaded_it_is_the_same(name: str, mode: Any, tmp_path: Path) -> None:
    model, ids = convert(build(name), texts(), Settings(kv=0.4, mode=mode)), torch.randint(1, 62, (2, 9))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert torch.equal(log_probs(again, ids), log_probs(model, ids))


def test_the_fisher_loses_less_than_the_weights_alone() -> None:
    model, ids = build("gqa"), torch.tensor(texts(4, 60))
    base = log_probs(model, ids)

    def lost(**settings: Any) -> float:
        own = log_probs(convert(deepcopy(model), texts(60), Settings(**settings)), ids)
        return float((base.exp() * (base - own)).sum(-1).mean())

    assert lost(kv=0.5) < lost(kv=0.5, recipe="plain") / 2
    assert lost(kv=0.5, mode="exact-rope") < lost(kv=0.5)


def test_the_teacher_is_what_the_model_was() -> None:
    model, ids = build("qwen2"), torch.randint(1, 62, (2, 9))
    before = log_probs(model, ids)
    teacher = convert_keeping(model, texts(), Settings(kv=0.2))
    after = log_probs(model, ids)
    with teacher.in_place() as base:
        assert torch.equal(log_probs(base, ids), before)
    assert torch.equal(log_probs(model, ids), after)
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kv": 0.0}, "above 0"),
        ({"kv": 1.5}, "above 0"),
        ({"rank": 33}, "from 1 to"),
        ({"rope_dims": 3}, "even number"),
        ({"rope_dims": 18}, "even number up to 16"),
        ({"kv": 0.25, "rope_dims": 8}, "nothing is left for the latent"),
        ({"mode": "exact-rope", "rope_dims": 4}, "no meaning"),
    ],
)
def test_settings_that_do_not_fit_are_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UnconvertibleError, match=said):
        convert(build("gqa"), texts(), Settings(**settings))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Qwen3Config(**GROUPED), "qwen3"),
        (MistralConfig(**GROUPED, sliding_window=16), "slides over 16"),
        (GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=64, add_cross_attention=True), "cross-attention"),
        (LlamaConfig(**GROUPED, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "dynamic"),
    ],
)
def test_models_that_cannot_be_converted_are_told(config: Any, said: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    before = type(model)
    with pytest.raises(UnconvertibleError, match=said):
        convert(model, texts(), Settings())
    assert type(model) is before


def test_too_few_texts_are_told() -> None:
    with pytest.raises(UnconvertibleError, match="256 tokens"):
        convert(build("gqa"), texts(2), Settings())


def test_texts_that_do_not_show_all_of_the_inputs_are_warned_of() -> None:
    config = LlamaConfig(**{**GROUPED, "hidden_size": 512, "num_hidden_layers": 1})
    with pytest.warns(UserWarning, match="calibrated on 320 tokens, fewer than the 512 dimensions"):
        model: Any = convert(AutoModelForCausalLM.from_config(config), texts(8), Settings(kv=0.9))
    assert log_probs(model, torch.randint(1, 62, (2, 9))).isfinite().all()
    algorithm = configure(Mla, {"kv": 0.9})
    algorithm.adapt(AutoModelForCausalLM.from_config(config), texts(8))
    assert [line[:24] for line in algorithm.warnings()] == ["calibrated on 320 tokens"]
    algorithm.adapt(build("gqa"), texts(8))
    assert len(algorithm.warnings()) == 1  # 320 tokens are enough for 32 dimensions


@pytest.mark.parametrize("mode", ["absorbable", "exact-rope"])
def test_a_step_behind_a_cache_gives_each_heads_weights(mode: Any) -> None:
    model: Any = convert(build("qwen2"), texts(), Settings(kv=0.4, mode=mode))
    model.set_attn_implementation("eager")
    ids = torch.randint(1, 62, (2, 9))
    whole = model(ids, output_attentions=True).attentions
    cache = DynamicCache(config=model.config)
    model(ids[:, :8], past_key_values=cache)
    last = model(ids[:, 8:], past_key_values=cache, output_attentions=True).attentions
    for one, every in zip(last, whole, strict=True):
        torch.testing.assert_close(one, every[:, :, 8:], rtol=1e-4, atol=1e-5)


def test_a_calibration_smaller_than_the_model_is_filled_up() -> None:
    model = convert(build("gqa"), [[7] * 300], Settings(kv=0.9))
    assert log_probs(model, torch.randint(1, 62, (2, 9))).isfinite().all()


def test_numbers_that_are_not_finite_are_told() -> None:
    model = build("gqa")
    model.model.layers[1].self_attn.q_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(UnconvertibleError, match="not finite"):
        convert(model, texts(), Settings())
