"""That output weights fitted anew are the ridge regression that is asked for, layer by layer."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from test_conversion import CASES, build, log_probs, texts
from torch import Tensor

from ftbench_mla import Settings
from ftbench_mla.conversion import RECIPES, convert_keeping
from ftbench_mla.family import UnconvertibleError
from ftbench_mla.modeling import attention_name, layers_of
from ftbench_mla.refit import RIDGE, refit_outputs


def attentions(model: Any) -> list[Any]:
    return [getattr(layer, attention_name(layer)) for layer in layers_of(model)]


def collected(model: Any, calibration: list[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """Run the texts through a model as it is; return what each layer's output weights are given, and what comes out."""
    given: list[list[Tensor]] = [[] for _ in attentions(model)]
    out: list[list[Tensor]] = [[] for _ in given]
    handles = []
    for attention, rows, outputs in zip(attentions(model), given, out, strict=True):
        last = attention.o_proj if hasattr(attention, "o_proj") else attention.c_proj
        handles.append(last.register_forward_pre_hook(lambda _, one, rows=rows: rows.append(one[0][0])))
        handles.append(last.register_forward_hook(lambda *seen, outputs=outputs: outputs.append(seen[2][0])))
    with torch.no_grad():
        for text in calibration:
            model(torch.tensor([text]))
    for handle in handles:
        handle.remove()
    return [torch.cat(rows) for rows in given], [torch.cat(outputs) for outputs in out]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_each_layers_weights_are_the_ridge_regression_behind_the_layers_before(name: str, mode: Any) -> None:
    base = build(name, torch.float64)
    # Unequal lengths: side by side they are padded, and here they are run one by one.
    calibration = [text[: 40 - index] for index, text in enumerate(texts())]
    model: Any = deepcopy(base)
    convert_keeping(model, calibration, Settings(kv=0.3, mode=mode))
    (heads, outputs), (_, wanted) = collected(model, calibration), collected(base, calibration)
    for attention, before, brought, got, asked in zip(
        attentions(model), attentions(base), heads, outputs, wanted, strict=True
    ):
        weight = attention.o_proj.weight
        old = before.o_proj.weight if hasattr(before, "o_proj") else before.c_proj.weight.T
        ridge = RIDGE * brought.square().mean()
        # Where the objective is smallest its gradient is zero.
        assert torch.allclose((asked - got).T @ brought / len(got), ridge * (weight - old), atol=1e-9)
        assert not torch.allclose(weight, old, atol=1e-4)


@pytest.mark.parametrize("name", ["gqa", "gpt2"])
def test_what_attention_puts_out_is_nearer_on_texts_that_it_has_not_seen(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build(name)
    seen, unseen = texts(80)[:60], texts(80)[60:]
    _, wanted = collected(base, unseen)

    def errors(*, refit: bool) -> list[float]:
        # What the best factors leave out of random inputs tells nothing of what they keep; of the plain ones' it does.
        monkeypatch.setitem(RECIPES, "plain", RECIPES["plain"]._replace(refits=refit))
        model: Any = deepcopy(base)
        convert_keeping(model, seen, Settings(kv=0.25, recipe="plain"))
        return [
            float((got - asked).square().mean()) for got, asked in zip(collected(model, unseen)[1], wanted, strict=True)
        ]

    for with_it, without in zip(errors(refit=True), errors(refit=False), strict=True):
        assert with_it < 0.95 * without


def test_it_leaves_the_mode_and_all_other_weights() -> None:
    base = build("gpt2")
    model: Any = deepcopy(base).train()
    teacher = convert_keeping(model, texts(), Settings(kv=0.3))
    assert model.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refit_outputs(model, teacher.attentions, texts(5))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"transformer.h.{index}.attn.o_proj.weight" for index in range(2)}
    ids = torch.randint(1, 62, (2, 20))
    with teacher.in_place() as untouched:
        assert torch.equal(log_probs(untouched, ids), log_probs(base, ids))


def test_numbers_that_are_not_finite_are_told() -> None:
    model: Any = build("gqa")
    teacher = convert_keeping(model, texts(), Settings(kv=0.3))
    with torch.no_grad():
        attentions(model)[1].value_up[0, 0, 0] = torch.inf
    with pytest.raises(UnconvertibleError, match="layer 1 puts out is not finite"):
        refit_outputs(model, teacher.attentions, texts(3))
