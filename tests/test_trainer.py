import dataclasses
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from ftbench.algorithm import Algorithm, AlgorithmConfig
from ftbench.data.task import Example
from ftbench.errors import FtbenchError
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_model, load_tokenizer
from ftbench.training.batching import Step, plan_steps
from ftbench.training.encoding import encode
from ftbench.training.logprobs import CompletionLogProbs
from ftbench.training.trainer import Loss, OptimiserSettings, StepReport, Training, Weight

DEFAULT = Algorithm(AlgorithmConfig())
SETTINGS = OptimiserSettings(learning_rate=1e-3, weight_decay=0.01, warmup=0.1, max_grad_norm=1.0)


def preference_loss(logprobs: CompletionLogProbs) -> Tensor:
    """A mean over prompts that reads both completions."""
    assert logprobs.rejected is not None
    assert logprobs.rejected_lengths is not None
    chosen, rejected = logprobs.chosen / logprobs.chosen_lengths, logprobs.rejected / logprobs.rejected_lengths
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean() - chosen.mean()


def load(folder: Path) -> PreTrainedModel:
    return load_model(folder, torch.device("cpu"))


def make_steps(folder: Path, tokens: int = 2000, micro_batch_tokens: int = 10**6, seed: int = 0) -> tuple[Step, ...]:
    examples = [Example(f"{n}?", "a boat " * (1 + n % 4) + str(n), "tea " * (1 + n % 3)) for n in range(12)]
    encoded = encode(examples, ChatFormat(load_tokenizer(folder)), 300, preferences=True)
    return plan_steps(encoded.examples, tokens, 4, micro_batch_tokens, seed)


def train(
    model: PreTrainedModel,
    steps: tuple[Step, ...],
    settings: OptimiserSettings = SETTINGS,
    loss: Loss = DEFAULT.loss,
    weight: Weight = DEFAULT.weight,
) -> list[StepReport]:
    reports: list[StepReport] = []
    Training(model, steps, settings, reports.append).run(loss, weight)
    return reports


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("loss", "weight"), [(DEFAULT.loss, DEFAULT.weight), (preference_loss, len)], ids=["token mean", "prompt mean"]
)
def test_how_the_batch_is_cut_changes_nothing(tiny_llama: Path, loss: Loss, weight: Weight) -> None:
    whole, cut = load(tiny_llama), load(tiny_llama)
    start = weights(whole)
    one, several = make_steps(tiny_llama, 1500), make_steps(tiny_llama, 1500, micro_batch_tokens=200)
    assert all(len(step.micro_batches) == 1 for step in one)
    assert any(1 < len(step.micro_batches) < 4 for step in several)
    reports = train(whole, one, loss=loss, weight=weight), train(cut, several, loss=loss, weight=weight)
    for a, b in zip(*reports, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-4)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-4)
    for name, parameter in cut.named_parameters():
        moved = (whole.get_parameter(name) - start[name]).abs().max().item()
        torch.testing.assert_close(parameter, whole.get_parameter(name), rtol=1e-4, atol=0.01 * moved)


def test_a_weight_in_the_wrong_unit_would_show(tiny_llama: Path) -> None:
    whole = train(load(tiny_llama), make_steps(tiny_llama, 1500))
    cut = train(load(tiny_llama), make_steps(tiny_llama, 1500, micro_batch_tokens=200), weight=len)
    assert any(abs(a.grad_norm / b.grad_norm - 1) > 1e-3 for a, b in zip(whole, cut, strict=True))


def test_the_loss_falls(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    reports = train(model, make_steps(tiny_llama, 12_000), dataclasses.replace(SETTINGS, learning_rate=1e-2))
    assert reports[0].loss == pytest.approx(math.log(259), abs=0.2)
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert not model.training


def test_reports_add_up(tiny_llama: Path) -> None:
    steps = make_steps(tiny_llama, 1500, micro_batch_tokens=200)
    reports = train(load(tiny_llama), steps)
    assert [report.step for report in reports] == list(range(1, len(steps) + 1))
    assert reports[-1].tokens == sum(step.tokens for step in steps)
    assert reports[-1].prompts == 4 * len(steps)
    seconds = [report.seconds for report in reports]
    assert 0 < seconds[0] <= seconds[-1]
    assert seconds == sorted(seconds)


def test_frozen_parameters_stay_bit_equal(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".layers.1." in name
    before = weights(model)
    train(model, make_steps(tiny_llama))
    unchanged = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert unchanged == {name for name in before if ".layers.1." not in name}


def test_a_loss_that_is_not_a_number_is_a_one_line_error_and_changes_no_weight(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    before = weights(model)
    with pytest.raises(FtbenchError, match=r"^the loss is no longer finite at step 1; .*learning rate$") as error:
        train(model, make_steps(tiny_llama), loss=lambda logprobs: logprobs.chosen.sum() * math.nan)
    assert "\n" not in str(error.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_huge_learning_rate_is_a_one_line_error(tiny_gpt2: Path) -> None:
    with pytest.raises(FtbenchError, match=r"^the loss is no longer finite at step [2-9]; try a lower learning rate$"):
        train(load(tiny_gpt2), make_steps(tiny_gpt2), dataclasses.replace(SETTINGS, learning_rate=1e30))


def test_nothing_trainable_is_an_error(tiny_llama: Path) -> None:
    model = load(tiny_llama).requires_grad_(False)
    with pytest.raises(FtbenchError, match="no parameter trainable"):
        train(model, make_steps(tiny_llama))


def test_the_learning_rate_rises_in_a_line_then_falls_to_a_tenth(tiny_llama: Path) -> None:
    steps = (make_steps(tiny_llama, 1) * 40)[:40]
    reports = train(load(tiny_llama), steps, dataclasses.replace(SETTINGS, warmup=0.25))
    rates = [report.learning_rate / SETTINGS.learning_rate for report in reports]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert all(before > after for before, after in pairwise(rates[10:]))
    assert rates[25] == pytest.approx(0.55)  # half-way down a half cosine
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(("warmup", "first"), [(0.0, 1.0), (1.0, 0.25)])
def test_warm_up_may_be_nothing_or_everything(tiny_llama: Path, warmup: float, first: float) -> None:
    reports = train(load(tiny_llama), make_steps(tiny_llama, 1) * 4, dataclasses.replace(SETTINGS, warmup=warmup))
    rates = [report.learning_rate / SETTINGS.learning_rate for report in reports]
    assert rates[0] == pytest.approx(first)
    assert max(rates) == pytest.approx(1.0)


def test_the_same_seed_gives_bit_equal_weights(tiny_gpt2: Path) -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        transformers.set_seed(seed)  # GPT-2 has dropout
        model = load(tiny_gpt2)
        train(model, make_steps(tiny_gpt2, 1000, seed=seed))
        return weights(model)

    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
