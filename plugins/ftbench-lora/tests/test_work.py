"""Weights that rest cost no gradient work: the matrix products of a step are counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch.utils.flop_counter import FlopCounterMode

from ftbench.algorithm import configure
from ftbench.training.batching import Step
from ftbench.training.logprobs import CompletionLogProbs
from ftbench.training.row import lay_out
from ftbench.training.step import accumulate
from ftbench_lora import Lora
from tiny import draw_pairs, load

RANK = 4
PAIRS = draw_pairs(0, 4)
ROW = lay_out([*(pair.chosen for pair in PAIRS), *(pair.rejected for pair in PAIRS if pair.rejected)])
aten = torch.ops.aten


def _added(_into: Sequence[int], a: Sequence[int], b: Sequence[int], **_: Any) -> int:
    """Of `into.addmm_(a, b)`, which the counter does not know."""
    return product(a[0], a[1], b[1])


def product(rows: int, inner: int, columns: int) -> int:
    """What `[rows, inner] @ [inner, columns]` costs: a multiplication and an addition for each."""
    return 2 * rows * inner * columns


@dataclass
class Layer:
    """A linear layer beside which an adapter stands, and whether anybody asks for the gradient by what goes into it."""

    name: str
    inputs: int
    outputs: int
    asked: bool = False


def adapted(folder: Path) -> tuple[Any, dict[str, Layer]]:
    """Return a model with adapters, and its layers, of which a forward pass says what is asked."""
    model: Any = configure(Lora, {"rank": RANK}).adapt(load(folder), []).train()
    layers: dict[str, Layer] = {}
    found: list[tuple[str, Any]] = [each for each in model.named_modules() if isinstance(each[1], LoraLayer)]
    for name, module in found:
        layers[name] = Layer(name, module.in_features, module.out_features)

        def see(_: Any, given: tuple[Any, ...], name: str = name) -> None:
            layers[name].asked = given[0].requires_grad

        module.register_forward_pre_hook(see)
    return model, layers


def count(model: Any) -> dict[str, int]:
    """Return what the matrix products of the forward and the backward pass of a step cost; attention is left out."""
    counters: dict[str, FlopCounterMode] = {}

    def moment(name: str) -> FlopCounterMode:
        return counters.setdefault(name, FlopCounterMode(display=False, custom_mapping={aten.addmm_: _added}))

    accumulate(model, Step(PAIRS), [PAIRS], CompletionLogProbs.nll, packed=True, moment=moment)
    found = {name: counter.get_flop_counts()["Global"] for name, counter in counters.items()}
    return {name: sum(by[op] for op in (aten.mm, aten.addmm, aten.addmm_) if op in by) for name, by in found.items()}


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def test_the_backward_pass_costs_no_product_for_a_weight_that_rests(folder: Path) -> None:
    model, layers = adapted(folder)
    counted = count(model)
    tokens, scores = len(ROW.ids), len(ROW.predicting)
    vocabulary, dim = model.get_output_embeddings().weight.shape
    # x W, and the adapter's x A and its B; the head is asked for logits, and with them at hand for its gradient.
    forward = 2 * product(scores, dim, vocabulary)
    backward = 0
    for layer in layers.values():
        into, out = product(tokens, layer.inputs, RANK), product(tokens, RANK, layer.outputs)
        whole = product(tokens, layer.inputs, layer.outputs)
        forward += whole + into + out
        # The gradients by A, by B and by what lies between; and, where it is asked, by x, through W and through A.
        backward += into + 2 * out + (whole + into if layer.asked else 0)
    assert any(layer.asked for layer in layers.values())
    assert counted == {"forward": forward, "backward": backward}


def test_a_weight_that_is_trained_costs_its_product(folder: Path) -> None:
    """The counter would see it: each that no longer rests costs as much as its part of the forward pass."""
    model, layers = adapted(folder)
    resting = count(model)["backward"]
    last = list(layers.values())[-1]
    model.get_submodule(last.name).get_base_layer().weight.requires_grad_(True)
    assert count(model)["backward"] == resting + product(len(ROW.ids), last.inputs, last.outputs)
