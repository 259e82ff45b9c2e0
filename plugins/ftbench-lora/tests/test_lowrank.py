"""The step of a linear layer and its adapter against peft's, whose values and gradients it must have."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from ftbench_lora.lowrank import LowRank, use_low_rank

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    attention_bias=True,
)


@pytest.mark.parametrize("biased", [False, True])
def test_a_low_rank_step_has_the_gradients_of_its_definition(biased: bool) -> None:
    torch.manual_seed(0)
    x, weight, down, up = (torch.randn(size, dtype=torch.float64) for size in ((2, 3, 5), (7, 5), (2, 5), (7, 2)))
    bias = torch.randn(7, dtype=torch.float64) if biased else None

    def found(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return LowRank.apply(x, weight, bias, down, up, 0.7)  # type: ignore[no-any-return,no-untyped-call]

    expected = torch.nn.functional.linear(x, weight + 0.7 * up @ down, bias)
    torch.testing.assert_close(found(x, down, up), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(found, tuple(one.requires_grad_() for one in (x, down, up)))
    assert torch.autograd.gradcheck(found, (x.detach(), down, up))


def adapted(**settings: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(deepcopy(CONFIG), dtype=torch.float32).eval()
    plain = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(**{**plain, **settings}), autocast_adapter_dtype=False)


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}, {"bias": "all"}],
    ids=lambda settings: next(iter(settings), "plain"),
)
@pytest.mark.parametrize("training", [False, True])
def test_a_model_with_low_rank_steps_is_pefts(settings: dict[str, Any], training: bool) -> None:
    model = adapted(**settings).train(training)
    ids = torch.randint(3, 64, (2, 9))

    def outcome() -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return {"logits": logits.detach(), **grads}

    before = outcome()
    use_low_rank(model)
    after = outcome()
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-7)


def test_the_low_rank_step_is_used_and_the_adapter_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    ids = torch.randint(3, 64, (1, 9))
    with model.disable_adapter():
        base = model(input_ids=ids).logits
    use_low_rank(model)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, base)
    calls = []
    plain: Any = LowRank.apply

    def noted(*given: Any) -> Tensor:
        calls.append(1)
        return plain(*given)  # type: ignore[no-any-return]

    monkeypatch.setattr(LowRank, "apply", noted)
    assert not torch.equal(model(input_ids=ids).logits, base)
    assert len(calls) == 2 * 7
    merged = model.merge_and_unload()
    assert type(merged.model.layers[0].mlp.up_proj) is torch.nn.Linear


def test_under_autocast_the_layer_is_pefts() -> None:
    model, ids = adapted(), torch.randint(3, 64, (1, 9))
    with torch.autocast("cpu", torch.bfloat16):
        before = model(input_ids=ids).logits
        use_low_rank(model)
        assert torch.equal(model(input_ids=ids).logits, before)
