"""What autograd keeps of a forward pass, and where gradients of the vocabulary go: nothing else may come out by it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel

from ftbench.models.gated import GatedMLP
from ftbench.models.loading import prepare
from ftbench.models.norm import RMSNorm
from ftbench.models.saved import can_be_computed_again, keeping_little
from ftbench.models.shelf import Shelf
from ftbench.models.vocabulary import Embed, InPlace, TokenEmbedding, adding_in_place, switches
from ftbench.training.batching import Step
from ftbench.training.encoding import EncodedExample, TokenSequence
from ftbench.training.logprobs import CompletionLogProbs, sequence_logprobs
from ftbench.training.step import accumulate

LLAMA: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
KINDS = {
    "llama": LlamaConfig(**LLAMA, pad_token_id=0, tie_word_embeddings=True),
    "untied": LlamaConfig(**LLAMA, pad_token_id=None, tie_word_embeddings=False),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
}
DTYPES = [torch.float32, torch.bfloat16, torch.long]
SEQUENCES = [TokenSequence(tuple((7 * place + size) % 60 for place in range(size)), 9) for size in (40, 25, 33, 18)]


def build(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return prepare(AutoModelForCausalLM.from_config(KINDS[kind], dtype=dtype).train())


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def passed(model: PreTrainedModel, around: AbstractContextManager[None]) -> dict[str, Tensor]:
    model.zero_grad()
    with around:
        scores = sequence_logprobs(model, SEQUENCES)
    (scores * torch.arange(1, 5)).sum().backward()
    return gradients(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, dtype)
    expected = passed(model, nullcontext())
    one = Shelf()
    for _ in range(2):  # the second time on what the first has left
        found = passed(model, keeping_little(one))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def kept_bytes(call: Callable[[], Any]) -> int:
    """What autograd keeps of a call, parameters aside."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = call()
    assert found is not None
    return sum(storages.values())


def test_a_gated_layer_and_a_normalisation_keep_what_went_in() -> None:
    norm, layer = RMSNorm(), GatedMLP()
    norm.weight, norm.variance_epsilon = torch.nn.Parameter(torch.rand(64)), 1e-6
    for name, sizes in {"gate_proj": (64, 96), "up_proj": (64, 96), "down_proj": (96, 64)}.items():
        setattr(layer, name, torch.nn.Linear(*sizes, bias=False))
    x = torch.randn(1, 500, 64, requires_grad=True)
    wide, narrow = 500 * 96 * 4, 500 * 64 * 4
    assert kept_bytes(lambda: layer(norm(x))) >= 3 * wide + 2 * narrow
    one = Shelf()
    with keeping_little(one):
        found = layer(norm(x))
    found.sum().backward()
    assert 2 * wide + narrow <= one.nbytes <= 1.1 * (2 * wide + narrow)


def test_a_pass_finds_room_where_the_one_before_was() -> None:
    model, one = build("llama"), Shelf()
    passed(model, keeping_little(one))
    slabs = list(one._slabs)
    assert sum(slab.nbytes for slab in slabs) == one.nbytes > 0
    passed(model, keeping_little(one))
    assert all(mine is its for mine, its in zip(one._slabs, slabs, strict=True))
    one.clear()
    assert one.nbytes == 0


def test_a_larger_pass_keeps_nothing_of_smaller_ones() -> None:
    model, one, fresh = build("llama"), Shelf(), Shelf()
    for sequences in (SEQUENCES[:1], SEQUENCES[:2], SEQUENCES):
        for each in (one, fresh) if sequences is SEQUENCES else (one,):
            with keeping_little(each):
                scores = sequence_logprobs(model, sequences)
            scores.sum().backward()
            del scores
    assert one.nbytes == pytest.approx(fresh.nbytes, rel=0.07)


def test_two_passes_that_live_at_once_do_not_share_memory() -> None:
    model, one = build("llama"), Shelf()
    expected = passed(model, nullcontext())
    model.zero_grad()
    with keeping_little(one):
        scores = sequence_logprobs(model, SEQUENCES)
    with keeping_little(one):
        other = sequence_logprobs(model, SEQUENCES[::-1])
    (scores * torch.arange(1, 5)).sum().backward()
    assert all(torch.equal(found, expected[name]) for name, found in gradients(model).items())
    del other


def test_what_somebody_holds_is_not_written_over() -> None:
    class Hold(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            held.append(ctx.saved_tensors[0])
            return grads[0] * 2

    held: list[Tensor] = []
    one, x = Shelf(), torch.randn(400, requires_grad=True)
    for factor in (1.0, 3.0):
        with keeping_little(one):
            y: Tensor = Hold.apply(x * factor)  # type: ignore[no-untyped-call]
        y.sum().backward()
        del y
    assert torch.equal(held[0], x.detach())
    assert torch.equal(held[1], x.detach() * 3)


def test_two_steps_from_one_tensor_are_told_apart() -> None:
    x = torch.randn(300, requires_grad=True)
    with keeping_little(Shelf()):
        y = x * 1
        twice = can_be_computed_again(y * 2, lambda y: y * 2, y)
        squared = can_be_computed_again(y * y, lambda y: y * y, y)
        found = (twice * squared).sum()  # each is kept for the other's gradient
    found.backward()
    torch.testing.assert_close(x.grad, 6 * x.detach() ** 2)


def test_what_was_changed_since_is_kept_as_it_is() -> None:
    weight = torch.randn(300, requires_grad=True)
    with keeping_little(Shelf()):
        y = can_be_computed_again(torch.ones(300), lambda: torch.ones(300))
        y.mul_(5)
        (y * weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full((300,), 5.0))


@pytest.mark.parametrize("size", [8, 300])
def test_what_is_changed_between_the_passes_changes_no_gradient_unnoticed(size: int) -> None:
    """What was copied is as it was; of what was not, autograd's own check is done here."""
    factor, x = torch.full((size,), 2.0), torch.ones(size, requires_grad=True)
    with keeping_little(Shelf()):
        found = (x * factor).sum()
    factor.mul_(3)
    if size == 8:
        with pytest.raises(RuntimeError, match="changed in place"):
            found.backward()
    else:
        found.backward()
        assert x.grad is not None
        assert torch.equal(x.grad, torch.full((size,), 2.0))


@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from(DTYPES)),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 2**32),
)
def test_copies_are_equal_and_lie_apart(wanted: list[tuple[list[int], torch.dtype]], seed: int) -> None:
    torch.manual_seed(seed)
    one = Shelf()
    for _ in range(2):
        lease = one.lend()
        tensors = [(100 * torch.randn(*shape)).to(dtype) for shape, dtype in wanted]
        turned = [tensor.transpose(0, -1) for tensor in tensors]
        copies = [lease.copy(tensor) for tensor in turned]
        for tensor, copy in zip(turned, copies, strict=True):
            assert torch.equal(tensor, copy)
            assert copy.stride() == tensor.stride()
            assert copy.data_ptr() % 64 == 0
        del lease, copies


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_gradients_of_the_vocabulary_added_in_place_are_the_same(
    kind: str, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = tuple(EncodedExample(sequence, None) for sequence in SEQUENCES)
    batches = [examples[begin : begin + 4 // cut] for begin in range(0, 4, 4 // cut)]

    def run() -> tuple[dict[str, Tensor], list[bool]]:
        model = build(kind)
        assert isinstance(model.get_input_embeddings(), TokenEmbedding)
        assert len(switches(model)) == 2
        accumulate(model, Step(examples), batches, CompletionLogProbs.nll, packed=True)
        return gradients(model), [one.on for one in switches(model)]

    placed: list[Tensor] = []
    put = InPlace.put

    def note(self: InPlace, weight: Tensor, gradient: Tensor) -> None:
        placed.append(weight)
        put(self, weight, gradient)

    monkeypatch.setattr(InPlace, "put", note)
    found, on = run()
    assert len(placed) == 1  # the first of them; all that follow are added
    assert on == [False, False]
    monkeypatch.setattr(InPlace, "takes", lambda *_: False)
    expected, _ = run()
    assert len(placed) == 1
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_padding_has_no_gradient_of_its_own() -> None:
    weight = torch.nn.Parameter(torch.randn(5, 3))
    weight.grad = torch.ones(5, 3)
    ids = torch.tensor([[1, 0, 1, 4]])
    found: Tensor = Embed.apply(weight, ids, 0, InPlace(on=True))  # type: ignore[no-untyped-call]
    found.sum().backward()
    assert weight.grad.sum(-1).tolist() == [3, 9, 3, 3, 6]


def test_a_gradient_that_somebody_looks_at_is_handed_to_autograd() -> None:
    model, seen = build("llama"), []
    weight = model.get_output_embeddings().weight
    weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    with adding_in_place(model):
        (-sequence_logprobs(model, SEQUENCES).sum()).backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], weight.grad)
