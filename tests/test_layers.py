"""Our own layers against transformers', whose values and gradients they must have."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, Qwen3Config
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from ftbench.models import norm
from ftbench.models.blocks import blocks
from ftbench.models.gated import Gate, GatedMLP
from ftbench.models.layers import use_own_layers
from ftbench.models.norm import Normalise, RMSNorm

SIZE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def build(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def gradients(call: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """Values and all gradients of a call, in float32."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    found = call(*leaves)
    torch.manual_seed(1)
    (found * torch.randn(found.shape)).sum().backward()
    return [found.detach().float(), *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("block", [1, 40, 10**6])
@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 7, 16)])
def test_normalisation_has_the_gradients_of_its_definition(
    block: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm, "BLOCK", block)
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(16, dtype=torch.float64)

    def found(x: Tensor, weight: Tensor) -> Tensor:
        return Normalise.apply(x, weight, 1e-3)[0]  # type: ignore[no-any-return,no-untyped-call]

    expected = weight * x * (x.pow(2).mean(-1, keepdim=True) + 1e-3).rsqrt()
    torch.testing.assert_close(found(x, weight), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(found, (x.requires_grad_(), weight.requires_grad_()))
    assert torch.autograd.gradcheck(found, (x, weight.detach()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalisation_is_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 50, 16).to(dtype), torch.randn(16).to(dtype)
    theirs = LlamaRMSNorm(16, 1e-5).to(dtype)

    def its(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(theirs, {"weight": weight}, (x,))  # type: ignore[no-any-return]

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return Normalise.apply(x, weight, 1e-5)[0]  # type: ignore[no-any-return,no-untyped-call]

    mine, expected = gradients(ours, x, weight), gradients(its, x, weight)
    if dtype == torch.bfloat16:
        assert torch.equal(mine[0], expected[0])  # rounded where transformers rounds
    for one, other in zip(mine, expected, strict=True):
        assert (one - other).norm() <= (0.01 if dtype == torch.bfloat16 else 1e-6) * other.norm()


@pytest.mark.parametrize("size", [16, 576, 960, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_transformers_to_the_bit(dtype: torch.dtype, size: int) -> None:
    """Else an exported model, which transformers reads alone, would write other replies than those measured."""
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(size, eps=1e-5).to(dtype)
    theirs.weight.data.normal_()
    ours: LlamaRMSNorm = LlamaRMSNorm(size, eps=1e-5).to(dtype)
    ours.__class__ = RMSNorm  # type: ignore[assignment]
    ours.load_state_dict(theirs.state_dict())
    for rows in (1, 7, 600):
        x = 5 * torch.randn(2, rows, size, dtype=dtype)
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gate_is_transformers(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(2, 3, 40, 16).to(dtype)

    def ours(gate: Tensor, up: Tensor) -> Tensor:
        return Gate.apply(gate, up)  # type: ignore[no-any-return,no-untyped-call]

    def theirs(gate: Tensor, up: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate) * up

    for one, other in zip(gradients(ours, gate, up), gradients(theirs, gate, up), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("config", [LlamaConfig(**SIZE), Qwen3Config(**SIZE, head_dim=8)])
def test_a_model_is_given_our_layers_where_its_own_are_llamas(config: Any) -> None:
    model = build(config)
    ids = torch.randint(3, 64, (2, 9))
    before = model(input_ids=ids).logits
    use_own_layers(model)
    kinds = {type(module) for module in model.modules()}
    assert {RMSNorm, GatedMLP} < kinds
    assert not kinds & {LlamaRMSNorm, LlamaMLP, Qwen3RMSNorm, Qwen3MLP}
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=1e-5, atol=1e-6)


def test_other_layers_stay() -> None:
    gemma = GemmaMLP(GemmaConfig(**SIZE))
    model: Any = torch.nn.ModuleList([GemmaRMSNorm(4), torch.nn.LayerNorm(4), gemma])
    before = [type(module) for module in model]
    use_own_layers(model)
    assert [type(module) for module in model] == before


@pytest.mark.parametrize(("count", "seen"), [(0, []), (3, [0]), (8, [0, 4]), (10, [0, 4, 8]), (100, [0, 4, 96])])
def test_without_values_only_the_blocks_that_take_different_memory_are_gone_through(
    count: int, seen: list[int]
) -> None:
    every = range(count)
    assert [row for one in blocks(torch.empty(count, 2), 4) for row in every[one]] == [*every]
    with FakeTensorMode():
        assert [one.start for one in blocks(torch.empty(count, 2), 4)] == seen
