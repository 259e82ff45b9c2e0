"""The algorithm on tiny models, and its parts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ftbench import Skip, UsageError
from ftbench.algorithm import configure
from ftbench.execution.fitting import plan_memory
from ftbench.execution.forecast import Question
from ftbench.models.skeleton import build_skeleton, load_config, without_values
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.training.batching import Plan
from ftbench.training.encoding import EncodedExample, TokenSequence
from ftbench.training.trainer import StepReport
from ftbench_mla import Mla
from ftbench_mla.attention import LatentAttention
from ftbench_mla.conversion import Settings, convert_keeping
from ftbench_mla.heal import HeadDivergence, HealSettings, compare, draw_texts, heal
from tiny import draw_pairs, load, logits, train

TEXTS = [list(range(3 + shift, 43 + shift)) for shift in range(10)]
SMALL = {"calibration_tokens": 256, "heal_tokens": 512, "heal_length": 32, "decode_contexts": [16]}


def mla(**options: Any) -> Any:
    return configure(Mla, {**SMALL, **options})


@pytest.mark.parametrize("options", [{}, {"mode": "exact-rope"}, {"kv": 0.9, "recipe": "transmla"}])
def test_it_converts_heals_trains_and_comes_back(tiny_llama: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    algorithm = mla(**options)
    model = algorithm.adapt(load(tiny_llama), TEXTS)
    reports: list[StepReport] = train(algorithm, model, tokens=1500)
    stages = [report.stage for report in reports]
    assert stages == sorted(stages)  # heal, then train
    assert {"heal", "train"} == set(stages)
    assert sum(report.tokens for report in reports if report.stage == "heal") == 512
    assert reports[-1].loss < next(report.loss for report in reports if report.stage == "train")
    figures = algorithm.figures()
    assert figures["KL_healed_nats/token"] >= 0
    assert {"convert_s", "decode_16_tokens/s", "decode_16_base_tokens/s", "agreement_converted"} < figures.keys()
    after = logits(model)
    algorithm.save(model, tmp_path)
    loaded = algorithm.load(tmp_path, lambda folder: load(folder or tiny_llama))
    assert any(isinstance(module, LatentAttention) for module in loaded.modules())
    torch.testing.assert_close(logits(loaded), after, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("then", "options"), [("lora", {"rank": 4}), ("orpo", {"adapter": "none"}), ("orpo", {})])
def test_another_algorithm_trains_the_converted_model(
    tiny_llama: Path, tmp_path: Path, then: str, options: dict[str, Any]
) -> None:
    algorithm: Any = load_plugins().make("mla", {**SMALL, "then": then, "then_options": options})
    assert algorithm.needs == algorithm.then.needs
    assert algorithm.config.then_options.keys() == algorithm.then.config.model_dump().keys()
    model = algorithm.adapt(load(tiny_llama), TEXTS)
    reports = train(algorithm, model, tokens=1500)
    assert {report.stage for report in reports} == {"heal", "train"}
    tmp_path.joinpath("model").mkdir()
    trained = logits(algorithm._trained)
    algorithm.save(model, tmp_path / "model")
    assert algorithm._trained is None  # else it stayed while the saved one is evaluated
    loaded = algorithm.load(tmp_path / "model", lambda folder: load(folder or tiny_llama))
    assert any(isinstance(module, LatentAttention) for module in loaded.modules())
    torch.testing.assert_close(logits(loaded), trained, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({}, None), ({"then": "lora"}, "healed before lora trains it"), ({"then": "lora", "heal_tokens": 0}, None)],
)
def test_a_plan_does_not_leave_out_healing_that_may_take_more(
    options: dict[str, Any], reason: str | None, tiny_llama: Path
) -> None:
    pairs = load_plugins().make("mla", options)
    sequence = TokenSequence((5,) * 40, 9)
    plan = Plan((EncodedExample(sequence, None),) * 4, 320, 2, 0)
    question = Question(load_config(tiny_llama), plan, torch.device("cpu"), "float32")
    found = plan_memory(Recipe(algorithm="mla", memory_budget=2**40), pairs, question, "cpu")
    assert reason in (found.reason or "") if reason else found.fits


@pytest.mark.parametrize("other", ["base", "mla", "trl-sft"])
def test_what_cannot_train_its_model_is_refused(other: str) -> None:
    with pytest.raises(UsageError, match="cannot train another algorithm's model"):
        load_plugins().make("mla", {"then": other})


def test_gpt2_has_half_the_cache_for_nothing(tiny_gpt2: Path) -> None:
    base = logits(load(tiny_gpt2))
    model = mla(kv=0.5).adapt(load(tiny_gpt2), TEXTS)
    torch.testing.assert_close(logits(model), base, rtol=1e-4, atol=1e-4)


def test_without_values_it_has_the_same_shape(tiny_llama: Path) -> None:
    with without_values(torch.device("cpu")):
        shape = mla().adapt(build_skeleton(load_config(tiny_llama), "float32"), TEXTS)
    model = mla().adapt(load(tiny_llama), TEXTS)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (shape, model)]
    assert sizes[0] == sizes[1]


def test_what_cannot_be_converted_is_skipped(tiny_llama: Path) -> None:
    with pytest.raises(Skip, match="nothing is left"):
        mla(kv=0.1, rope_dims=8).adapt(load(tiny_llama), TEXTS)
    with pytest.raises(Skip, match="256 tokens"):
        mla().adapt(load(tiny_llama), TEXTS[:3])


def test_healing_brings_it_nearer_and_changes_attention_alone(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    teacher = convert_keeping(model, TEXTS, Settings(kv=0.2))
    with teacher.in_place() as base:
        texts = draw_texts(base, 5, 200, 32, seed=0)
    before = compare(model, teacher, texts)
    held = {name: p.detach().clone() for name, p in model.named_parameters() if "self_attn" not in name}
    losses: list[float] = []
    heal(model, teacher, texts, 1e-2, HealSettings(64, 64), lambda loss, *_: losses.append(loss))
    after = compare(model, teacher, texts)
    assert after.kl < 0.7 * before.kl
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, held[name]) for name, p in model.named_parameters() if name in held)
    assert all(p.requires_grad for p in model.parameters())


def test_the_divergence_and_its_gradient_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    student, teacher, weight = (torch.randn(size, dtype=torch.float64) for size in ((7, 5), (7, 5), (11, 5)))

    def found(student: Tensor) -> Tensor:
        return HeadDivergence.apply(student, teacher, weight)  # type: ignore[no-any-return,no-untyped-call]

    own, wanted = (each @ weight.T for each in (student, teacher))
    expected = torch.nn.functional.kl_div(
        own.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(found(student).double(), expected, rtol=1e-5, atol=1e-6)
    leaf = student.clone().requires_grad_()
    (found(leaf) * torch.arange(7)).sum().backward()
    other = student.clone().requires_grad_()
    loss = torch.nn.functional.kl_div(
        (other @ weight.T).log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True
    )
    (loss.sum(-1) * torch.arange(7)).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_pairs_of_one_prompt_are_scored_as_each_alone(tiny_llama: Path) -> None:
    from ftbench.training.logprobs import sequence_logprobs

    model = mla().adapt(load(tiny_llama), TEXTS)
    pairs = draw_pairs(0, 4)
    sequences = [each for pair in pairs for each in (pair.chosen, pair.rejected) if each is not None]
    together = sequence_logprobs(model, sequences)
    alone = torch.cat([sequence_logprobs(model, [sequence]) for sequence in sequences])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
