"""What must hold of a conversion, on the weights of SmolLM2-135M."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from ftbench.models.loading import load_model
from ftbench.models.resolve import resolve_model
from ftbench.recipe import DEFAULT_MODEL
from ftbench_mla.conversion import Settings, convert

pytestmark = pytest.mark.filterwarnings("ignore:calibrated on")  # the text is short, and nothing is to be lost by that

TEXT = (
    "The first railway that carried passengers by steam ran between two market towns, and people walked beside it to "
    "see whether it was true. Bread rises because yeast eats sugar and breathes out gas; knead it well, let it rest, "
    "and do not open the oven early. When the tide goes out, the boats in the harbour lie on their sides in the mud. "
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve_model(DEFAULT_MODEL, None).folder


@pytest.fixture(scope="module")
def base(folder: Path) -> Any:
    return load_model(folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def ids(folder: Path) -> list[int]:
    return AutoTokenizer.from_pretrained(folder)(TEXT * 4)["input_ids"]  # type: ignore[no-any-return]


def log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.float().log_softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.real_model
@pytest.mark.parametrize(
    "settings", [Settings(rank=192, rope_dims=192), Settings(rank=384, mode="exact-rope")], ids=lambda one: one.mode
)
def test_with_full_rank_nothing_is_lost(base: Any, ids: list[int], settings: Settings, tmp_path: Path) -> None:
    converted: Any = convert(deepcopy(base), [ids], settings)
    held_out = ids[40:200]
    found = log_probs(converted, held_out)
    assert (found - log_probs(base, held_out)).abs().max() <= 2e-4
    prompt = torch.tensor([ids[:20]])
    given: Any = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 12, "do_sample": False}
    for beams in (1, 3):
        assert torch.equal(
            converted.generate(prompt, num_beams=beams, **given), base.generate(prompt, num_beams=beams, **given)
        )
    converted.save_pretrained(tmp_path)
    assert torch.equal(log_probs(load_model(tmp_path, torch.device("cpu")), held_out), found)


@pytest.mark.real_model
def test_half_the_cache_loses_ten_times_less_than_the_weights_decomposition(base: Any, ids: list[int]) -> None:
    """The bar of the method, here on calibration texts far fewer than its own."""
    held_out = AutoTokenizer.from_pretrained(resolve_model(DEFAULT_MODEL, None).folder)(
        "Rain fell on the hills all night, and in the morning the river had taken the lower path and two of the gates."
    )["input_ids"]
    known = log_probs(base, held_out)

    def lost(recipe: Any) -> float:
        model = convert(deepcopy(base), [ids], Settings(kv=0.5, mode="exact-rope", recipe=recipe))
        return float((known.exp() * (known - log_probs(model, held_out))).sum(-1).mean())

    assert lost("fisher") < lost("plain") / 3
