import dataclasses
import itertools
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from ftbench.algorithm import Algorithm, AlgorithmConfig
from ftbench.data.task import Example
from ftbench.errors import FtbenchError
from ftbench.memory.fit import Fit, Reduction
from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_model, load_tokenizer
from ftbench.models.precision import Precision
from ftbench.training.batching import Plan, cut
from ftbench.training.encoding import encode
from ftbench.training.logprobs import CompletionLogProbs, completion_logprobs
from ftbench.training.step import Loss
from ftbench.training.trainer import OptimiserSettings, StepReport, Training
from tiny import drop_nothing, load

DEFAULT = Algorithm(AlgorithmConfig())
SETTINGS = OptimiserSettings(learning_rate=1e-3, weight_decay=0.01, warmup=0.1, max_grad_norm=1.0)


def preference_loss(logprobs: CompletionLogProbs) -> Tensor:
    """A mean over tokens and one over prompts, of both completions."""
    chosen, rejected = logprobs.chosen.per_token, logprobs.rejected.per_token
    return logprobs.nll() - logprobs.mean(torch.nn.functional.logsigmoid(chosen - rejected))


def make_plan(folder: Path, tokens: int = 2000, seed: int = 0) -> Plan:
    examples = [Example(f"{n}?", "a boat " * (1 + n % 4) + str(n), "tea " * (1 + n % 3)) for n in range(12)]
    encoded = encode(examples, ChatFormat(load_tokenizer(folder)), 300, preferences=True)
    return Plan(encoded.examples, tokens, 4, seed)


def make_training(
    model: PreTrainedModel,
    plan: Plan,
    settings: OptimiserSettings = SETTINGS,
    start: str | None = None,
    micro_batch_tokens: int = 10**6,
) -> tuple[Training, list[StepReport]]:
    reports: list[StepReport] = []
    tokenizer = load_tokenizer(Path(model.config._name_or_path))
    return Training(model, tokenizer, plan, Fit(micro_batch_tokens), settings, reports.append, start), reports


def train(
    model: PreTrainedModel,
    plan: Plan,
    settings: OptimiserSettings = SETTINGS,
    loss: Loss = DEFAULT.loss,
    micro_batch_tokens: int = 10**6,
) -> list[StepReport]:
    training, reports = make_training(model, plan, settings, micro_batch_tokens=micro_batch_tokens)
    training.run(loss)
    return reports


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("loss", [DEFAULT.loss, preference_loss], ids=["token mean", "token and prompt mean"])
def test_how_the_batch_is_cut_changes_nothing(tiny_llama: Path, loss: Loss) -> None:
    whole, parted = load(tiny_llama), load(tiny_llama)
    start = weights(whole)
    plan = make_plan(tiny_llama, 1500)
    assert any(1 < len(cut(step.examples, 200)) < 4 for step in plan.steps)
    reports = train(whole, plan, loss=loss), train(parted, plan, loss=loss, micro_batch_tokens=200)
    for a, b in zip(*reports, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-4)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-4)
    for name, parameter in parted.named_parameters():
        moved = (whole.get_parameter(name) - start[name]).abs().max().item()
        torch.testing.assert_close(parameter, whole.get_parameter(name), rtol=1e-4, atol=0.01 * moved)


def test_a_loss_that_ignores_the_effective_batch_would_show(tiny_llama: Path) -> None:
    def naive(logprobs: CompletionLogProbs) -> Tensor:
        return -logprobs.chosen.per_token.mean()

    whole = train(load(tiny_llama), make_plan(tiny_llama, 1500), loss=naive)
    parted = train(load(tiny_llama), make_plan(tiny_llama, 1500), loss=naive, micro_batch_tokens=200)
    assert any(abs(a.grad_norm / b.grad_norm - 1) > 1e-3 for a, b in zip(whole, parted, strict=True))


def test_the_loss_falls(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    reports = train(model, make_plan(tiny_llama, 12_000), dataclasses.replace(SETTINGS, learning_rate=1e-2))
    assert reports[0].loss == pytest.approx(math.log(259), abs=0.2)
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert not model.training


def test_a_hundred_steps_in_bf16_end_where_float32s_do(tiny_llama: Path) -> None:
    plan, settings = make_plan(tiny_llama, 30_000), dataclasses.replace(SETTINGS, learning_rate=3e-3)
    precisions: tuple[Precision, ...] = ("float32", "bf16")
    ends = []
    for precision in precisions:
        model = load_model(tiny_llama, torch.device("cpu"), precision)
        losses = [report.loss for report in train(model, plan, settings)]
        assert len(losses) >= 100
        assert model.lm_head.weight.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        ends.append(sum(losses[90:100]) / 10)
        assert ends[-1] < 0.9 * losses[0]  # or nothing was learnt that could differ
    assert ends[1] == pytest.approx(ends[0], rel=0.01)


def test_every_step_is_reported(tiny_llama: Path) -> None:
    plan = make_plan(tiny_llama, 1500)
    reports = train(load(tiny_llama), plan, micro_batch_tokens=200)
    assert [(r.tokens, r.sequences, r.prompts) for r in reports] == [(step.tokens, 8, 4) for step in plan.steps]
    assert {report.stage for report in reports} == {"train"}


def test_a_time_limit_ends_training_and_brings_the_rate_down(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftbench.training import clock as module

    clock = itertools.count(step=0.1)  # a tenth of a second a look, whatever else the machine does
    monkeypatch.setattr(module, "perf_counter", lambda: next(clock))
    endless = dataclasses.replace(make_plan(tiny_llama, 10**6), seconds=2.0)
    reports = train(load(tiny_llama), endless)
    assert len(reports) == 19
    rates = [report.learning_rate / SETTINGS.learning_rate for report in reports]
    assert max(rates) > 0.95
    assert rates[-1] == pytest.approx(0.1, abs=0.05)


def test_stages_share_the_budget_and_the_first_reads_no_rejected_completion(tiny_llama: Path) -> None:
    training, reports = make_training(load(tiny_llama), make_plan(tiny_llama, 3000))
    training.supervised_first(0.4, 1e-3).run(preference_loss)
    stages = {name: [r for r in reports if r.stage == name] for name in ("supervised", "train")}
    assert len(stages["supervised"]) + len(stages["train"]) == len(reports)
    assert all(r.sequences == r.prompts for r in stages["supervised"])
    assert all(r.sequences == 2 * r.prompts for r in stages["train"])
    assert sum(r.tokens for r in stages["supervised"]) == pytest.approx(1200, abs=500)
    assert sum(r.tokens for r in reports) == pytest.approx(3000, abs=1000)


def test_stages_under_a_time_limit_leave_nothing_over(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ftbench.training import clock as module

    clock = itertools.count(step=0.1)
    monkeypatch.setattr(module, "perf_counter", lambda: next(clock))
    plan = dataclasses.replace(make_plan(tiny_llama, 3000), seconds=4.0)
    training, reports = make_training(load(tiny_llama), plan)
    rest = training.supervised_first(0.5, 1e-3)  # ended by its tokens: the time that it did not need is the rest's
    spent = sum(report.tokens for report in reports)
    assert rest.plan.tokens == 3000 - spent
    assert rest.plan.seconds == pytest.approx(4.0 - 0.1 * (len(reports) + 1))
    plan = dataclasses.replace(make_plan(tiny_llama, 10**6), seconds=4.0)
    training, reports = make_training(load(tiny_llama), plan)
    rest = training.supervised_first(0.5, 1e-3)  # ended by the clock: the tokens that it did not reach are the rest's
    assert rest.plan.tokens == 10**6 - sum(report.tokens for report in reports)
    assert rest.plan.seconds == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(("share", "start"), [(0.0, None), (0.5, "lora-s0-12345678")])
def test_no_supervised_stage_without_a_share_or_from_a_run(tiny_llama: Path, share: float, start: str | None) -> None:
    training, reports = make_training(load(tiny_llama), make_plan(tiny_llama, 500), start=start)
    assert training.supervised_first(share, 1e-3) is training
    assert not reports


def test_the_reference_is_the_model_as_it_stood_before_training(tiny_gpt2: Path) -> None:
    model = load(tiny_gpt2)
    model.train()  # GPT-2 has dropout, which neither the reference nor what is compared with it may have
    training, _ = make_training(model, make_plan(tiny_gpt2, 2000))
    referred = training.with_reference()
    with torch.no_grad():
        now = completion_logprobs(model.train(), referred.plan.examples)
    torch.testing.assert_close(now.chosen.log_ratio, torch.zeros(len(now.chosen.sums)), rtol=0, atol=1e-4)
    examples = referred.plan.examples
    assert [dataclasses.replace(e, reference=None) for e in examples] == list(training.plan.examples)
    with torch.no_grad():
        found = completion_logprobs(load(tiny_gpt2), examples)
    torch.testing.assert_close(found.chosen.log_ratio, torch.zeros(len(examples)), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.rejected.log_ratio, torch.zeros(len(examples)), rtol=0, atol=1e-4)
    referred.run(preference_loss)
    with torch.no_grad():
        assert completion_logprobs(model, examples).chosen.log_ratio.abs().max() > 0.1


def test_only_planned_examples_are_scored_by_the_reference(tiny_llama: Path) -> None:
    training, _ = make_training(load(tiny_llama), make_plan(tiny_llama, 1))
    referred = training.with_reference()
    assert sum(e.reference is not None for e in referred.plan.examples) == 4
    assert [example.reference is not None for step in referred.plan.steps for example in step.examples] == [True] * 4


def test_where_memory_runs_out_the_reference_is_scored_in_halves(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(model: PreTrainedModel, batch: Any, **given: Any) -> CompletionLogProbs:
        if len(batch) > 1:
            raise MemoryError
        return completion_logprobs(model, batch, **given)

    training, _ = make_training(load(tiny_llama), make_plan(tiny_llama, 1), micro_batch_tokens=10**6)
    together = training.with_reference()
    monkeypatch.setattr("ftbench.training.reference.completion_logprobs", score)
    apart = training.with_reference()
    for one, other in zip(together.plan.examples, apart.plan.examples, strict=True):
        assert (one.reference is None) == (other.reference is None)
        assert one.reference is None or other.reference == pytest.approx(one.reference, rel=1e-4)


def test_under_a_time_limit_the_reference_scores_what_it_can(tiny_llama: Path) -> None:
    plan = dataclasses.replace(make_plan(tiny_llama, 3000), seconds=1e-6)
    referred = make_training(load(tiny_llama), plan, micro_batch_tokens=1)[0].with_reference()
    assert 0 < len(referred.plan.examples) < len(plan.examples)
    assert all(example.reference is not None for example in referred.plan.examples)
    assert referred.plan.seconds == 0


def test_frozen_parameters_stay_bit_equal(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = ".layers.1." in name
    before = weights(model)
    train(model, make_plan(tiny_llama))
    unchanged = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert unchanged == {name for name in before if ".layers.1." not in name}


def test_a_loss_that_is_not_a_number_is_a_one_line_error_and_changes_no_weight(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    before = weights(model)
    with pytest.raises(
        FtbenchError, match=r"^the loss is no longer finite at step 1 of stage 'train'; .*learning rate$"
    ) as error:
        train(model, make_plan(tiny_llama), loss=lambda logprobs: logprobs.nll() * math.nan)
    assert "\n" not in str(error.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_huge_learning_rate_is_a_one_line_error(tiny_gpt2: Path) -> None:
    with pytest.raises(
        FtbenchError, match=r"^the loss is no longer finite at step [2-9] of .*; try a lower learning rate$"
    ):
        train(load(tiny_gpt2), make_plan(tiny_gpt2), dataclasses.replace(SETTINGS, learning_rate=1e30))


def test_nothing_trainable_is_an_error(tiny_llama: Path) -> None:
    model = load(tiny_llama).requires_grad_(False)
    with pytest.raises(FtbenchError, match="no parameter is left trainable"):
        train(model, make_plan(tiny_llama))


def equal_steps(folder: Path, count: int) -> Plan:
    example = make_plan(folder).examples[0]
    return Plan((example,), 4 * example.tokens * count, 4, 0)


def test_the_learning_rate_rises_in_a_line_then_falls_to_a_tenth(tiny_llama: Path) -> None:
    reports = train(load(tiny_llama), equal_steps(tiny_llama, 40), dataclasses.replace(SETTINGS, warmup=0.25))
    rates = [report.learning_rate / SETTINGS.learning_rate for report in reports]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[10] == pytest.approx(1.0)
    assert all(before > after for before, after in pairwise(rates[10:]))
    assert rates[25] == pytest.approx(0.55)  # half-way down a half cosine
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(("warmup", "first"), [(0.0, 1.0), (1.0, 0.25)])
def test_warm_up_may_be_nothing_or_everything(tiny_llama: Path, warmup: float, first: float) -> None:
    reports = train(load(tiny_llama), equal_steps(tiny_llama, 4), dataclasses.replace(SETTINGS, warmup=warmup))
    rates = [report.learning_rate / SETTINGS.learning_rate for report in reports]
    assert rates[0] == pytest.approx(first)
    assert max(rates) == pytest.approx(1.0)


def test_the_same_seed_gives_bit_equal_weights(tiny_gpt2: Path) -> None:
    def trained(seed: int) -> dict[str, Tensor]:
        transformers.set_seed(seed)  # GPT-2 has dropout
        model = load(tiny_gpt2)
        train(model, make_plan(tiny_gpt2, 1000, seed=seed))
        return weights(model)

    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def run_out(model: PreTrainedModel, fails: Callable[[int], bool]) -> list[int]:
    """Let the model's forward pass fail as an allocator does, for inputs of so many tokens; return all their sizes."""
    sizes: list[int] = []
    forward = model.forward

    def limited(*args: Any, **kwargs: Any) -> Any:
        sizes.append(kwargs["input_ids"].numel())
        if fails(sizes[-1]):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return forward(*args, **kwargs)

    model.forward = limited  # type: ignore[method-assign]
    return sizes


def test_when_memory_runs_out_the_step_is_done_again_in_smaller_pieces(tiny_llama: Path) -> None:
    plan = make_plan(tiny_llama, 1500)
    largest = max(example.tokens for example in plan.examples)
    whole, limited = load(tiny_llama), load(tiny_llama)
    expected = train(whole, plan)
    run_out(limited, lambda tokens: tokens > 1.5 * largest)
    training, reports = make_training(limited, plan)
    first = cut(plan.steps[0].examples, training.fit.micro_batch_tokens)
    heaviest = max(sum(example.tokens for example in batch) for batch in first)
    training.run(DEFAULT.loss)
    assert [(r.tokens, r.prompts) for r in reports] == [(e.tokens, e.prompts) for e in expected]
    assert [r.loss for r in reports] == pytest.approx([e.loss for e in expected], rel=1e-4)
    assert [reduction.step for reduction in training.fit.reductions] == sorted(
        reduction.step for reduction in training.fit.reductions
    )
    assert training.fit.reductions[0] == Reduction("train", 0, heaviest // 2, checkpointing=False)
    assert not training.fit.checkpointing
    torch.testing.assert_close(weights(limited), weights(whole), rtol=1e-3, atol=1e-4)


def test_a_single_example_that_does_not_fit_gets_checkpointing_and_then_gives_up(tiny_llama: Path) -> None:
    model = load(tiny_llama)
    run_out(model, lambda _: not model.is_activation_checkpointing)
    training, reports = make_training(model, make_plan(tiny_llama, 600))
    training.run(DEFAULT.loss)
    assert training.fit.checkpointing
    assert [reduction.checkpointing for reduction in training.fit.reductions][-2:] == [False, True]
    assert reports

    hopeless = load(tiny_llama)
    run_out(hopeless, lambda _: True)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        train(hopeless, make_plan(tiny_llama))


def test_other_errors_are_not_taken_for_an_exhausted_memory(tiny_llama: Path) -> None:
    def broken(logprobs: CompletionLogProbs) -> Tensor:
        raise RuntimeError("shapes do not fit")

    training, _ = make_training(load(tiny_llama), make_plan(tiny_llama))
    with pytest.raises(RuntimeError, match="shapes"):
        training.run(broken)
    assert training.fit.reductions == []


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_checkpointing_changes_no_figure(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    plan = make_plan(folder, 1000)
    results = []
    for checkpointing in (False, True):
        model = load(folder)
        drop_nothing(model)
        training, reports = make_training(model, plan)
        training.fit.checkpointing = checkpointing
        training.run(DEFAULT.loss)
        assert model.is_activation_checkpointing == checkpointing
        results.append([(report.loss, report.grad_norm) for report in reports])
    for a, b in zip(*results, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
