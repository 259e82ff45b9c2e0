"""Our losses against TRL's, and TRL's trainers as algorithms."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ftbench.algorithm import Algorithm, configure
from ftbench.training.encoding import EncodedExample
from ftbench.training.logprobs import CompletionLogProbs, completion_logprobs
from ftbench.training.reference import add_reference
from ftbench_dpo import Dpo
from ftbench_full import Full
from ftbench_orpo import Orpo
from ftbench_trl import TrlDpo, TrlOrpo, TrlSft, trainers
from tiny import draw_pairs, drop_nothing, load, logits, make_training, train

BATCHES = range(20)
PLAIN = {"bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 8}


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny model with weights so large that its probabilities differ, and without dropout."""
    loaded = load(request.getfixturevalue(request.param))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    drop_nothing(loaded)
    return loaded


def trl_trainer(name: str, model: PreTrainedModel, batch: tuple[EncodedExample, ...], folder: Path, **more: Any) -> Any:
    training = make_training(model, batch)
    rows = [
        {
            "prompt_ids": list(example.chosen.ids[: example.chosen.prompt_length]),
            "chosen_ids": list(example.chosen.ids[example.chosen.prompt_length :]),
            "rejected_ids": list(example.rejected.ids[example.rejected.prompt_length :]) if example.rejected else [],
        }
        for example in batch
    ]
    trainer = trainers.make_trainer(name, training, rows, {**PLAIN, **more, "output_dir": str(folder)}, 0.0)
    trainer.rows = trainer.data_collator([trainer.train_dataset[index] for index in range(len(rows))])
    return trainer


def backward(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of the loss; the model's are gone afterwards."""
    loss.backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def ours(algorithm: Algorithm, model: PreTrainedModel, batch: tuple[EncodedExample, ...]) -> tuple[Tensor, Any]:
    loss = algorithm.loss(completion_logprobs(model, batch))
    return loss, backward(model, loss)


def assert_same(found: tuple[Tensor, Any], expected: tuple[Tensor, Any]) -> None:
    """The figures that the project promises: 1e-5 for the loss, 1e-4 for each parameter's gradient norm."""
    assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def with_reference(model: PreTrainedModel, batch: tuple[EncodedExample, ...]) -> tuple[EncodedExample, ...]:
    """Score with the model, then move the model away from its reference."""
    plan = add_reference(model, make_training(model, batch, tokens=10**4).plan, 10**6, packed=True)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.005 * torch.randn(parameter.shape, generator=draw))
    return plan.examples


@pytest.mark.parametrize("seed", BATCHES)
def test_full_is_the_loss_of_sft_trainer(model: PreTrainedModel, seed: int, tmp_path: Path) -> None:
    batch = draw_pairs(seed, random.Random(seed).randint(1, 6))
    found = ours(configure(Full, {}), model, batch)
    trainer = trl_trainer("trl-sft", model, batch, tmp_path)
    logprobs = model(**trainer.rows, fused_lm_head=True).log_probs.sum(1)
    torch.testing.assert_close(completion_logprobs_of(model, batch).chosen.sums, logprobs, rtol=1e-5, atol=0)
    loss = trainer.compute_loss(model, dict(trainer.rows))
    assert_same(found, (loss, backward(model, loss)))


def completion_logprobs_of(model: PreTrainedModel, batch: tuple[EncodedExample, ...]) -> CompletionLogProbs:
    """With the forward that the model had before TRL put its own."""
    patched = model.__dict__.pop("forward", None)
    found = completion_logprobs(model, batch)
    if patched:
        model.forward = patched  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge"])
@pytest.mark.parametrize("seed", BATCHES)
def test_dpo_is_the_loss_of_dpo_trainer(model: PreTrainedModel, seed: int, loss_type: str, tmp_path: Path) -> None:
    draw = random.Random(seed)
    beta = draw.choice([0.05, 0.1, 0.2])
    batch = draw_pairs(seed, draw.randint(1, 6))
    trainer = trl_trainer("trl-dpo", model, batch, tmp_path, beta=beta, loss_type=loss_type)  # copies its reference
    trl_reference = trainer.compute_ref_log_probs(trainer.ref_model, trainer.rows)
    patched = model.__dict__.pop("forward")
    referred = with_reference(model, batch)
    torch.testing.assert_close(
        torch.tensor([example.reference for example in referred]).T, torch.stack(trl_reference), rtol=1e-5, atol=1e-5
    )
    found = ours(configure(Dpo, {"beta": beta, "loss": loss_type}), model, referred)
    model.forward = patched  # type: ignore[method-assign]
    loss = trainer.compute_loss(model, dict(trainer.rows))
    assert_same(found, (loss, backward(model, loss)))


@pytest.mark.parametrize("seed", BATCHES)
def test_orpo_is_the_loss_of_orpo_trainer(model: PreTrainedModel, seed: int, tmp_path: Path) -> None:
    # TRL's NLL counts the prompt's tokens too, from the second on; with a prompt of one token it is the paper's.
    batch = draw_pairs(seed, random.Random(seed).randint(1, 6), prompt=1)
    found = ours(configure(Orpo, {"weight": 0.3}), model, batch)
    trainer = trl_trainer("trl-orpo", model, batch, tmp_path, beta=0.3)
    loss, _ = trainer.get_batch_loss_metrics(model, trainer.rows)
    assert_same(found, (loss, backward(model, loss)))


@pytest.mark.parametrize("seed", BATCHES)
def test_orpo_with_long_prompts_differs_from_trl_in_the_prompts_nll_alone(
    model: PreTrainedModel, seed: int, tmp_path: Path
) -> None:
    batch = draw_pairs(seed, random.Random(seed).randint(1, 6))
    logprobs = completion_logprobs(model, batch)
    preference = configure(Orpo, {"weight": 0.3}).loss(logprobs) - logprobs.nll()
    trainer = trl_trainer("trl-orpo", model, batch, tmp_path, beta=0.3)
    loss, metrics = trainer.get_batch_loss_metrics(model, trainer.rows)
    chosen, rejected, *_ = trainer.concatenated_forward(model, trainer.rows)
    torch.testing.assert_close(logprobs.chosen.per_token, chosen, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logprobs.rejected.per_token, rejected, rtol=1e-5, atol=1e-6)
    expected = loss - metrics["nll_loss"]
    assert preference.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", [TrlSft, TrlDpo, TrlOrpo])
@pytest.mark.parametrize("adapter", [False, True])
def test_trl_trains_and_leaves_the_model_as_it_found_it(
    tiny_llama: Path, tmp_path: Path, kind: type[Algorithm], adapter: bool
) -> None:
    from ftbench_lora import Lora

    algorithm = configure(kind, {"learning_rate": 1e-2})
    if adapter:
        algorithm.adapter = configure(Lora, {"rank": 4})
    base = load(tiny_llama)
    before = logits(base)
    model = algorithm.adapt(base, [])
    reports = train(algorithm, model, tokens=1500)
    assert all(report.loss > 0 and report.grad_norm > 0 for report in reports)
    assert reports[-1].loss < reports[0].loss
    after = logits(model)
    assert (after - before).abs().max() > 0.01
    algorithm.save(model, tmp_path / "saved")
    assert not [path for path in (tmp_path / "saved").iterdir() if path.is_dir()]  # no reference beside it
    loaded = algorithm.load(tmp_path / "saved", lambda other: load(other or tiny_llama))
    torch.testing.assert_close(logits(loaded), after, rtol=1e-5, atol=1e-5)  # float32 again, and TRL's forward gone


def test_sft_in_float32_takes_the_same_steps_as_full(tiny_llama: Path) -> None:
    """The same tokens in the same order, the same optimiser, schedule and clipping: the same training."""
    torch.manual_seed(0)
    theirs, mine = load(tiny_llama), load(tiny_llama)
    reports = [
        train(configure(TrlSft, {"bf16": False}), theirs, tokens=2000),
        train(configure(Full, {}), mine, tokens=2000),
    ]
    assert len(reports[0]) == len(reports[1]) > 5
    for a, b in zip(*reports, strict=True):
        assert (a.tokens, a.sequences, a.prompts) == (b.tokens, b.sequences, b.prompts)
        assert a.learning_rate == pytest.approx(b.learning_rate)
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)


def test_a_time_limit_ends_trls_training(tiny_llama: Path) -> None:
    from dataclasses import replace

    reports: list[Any] = []
    training = make_training(load(tiny_llama), draw_pairs(0, 20), tokens=10**5, reports=reports)
    configure(TrlSft, {}).train(replace(training, plan=replace(training.plan, seconds=0.3)))
    assert 0 < len(reports) < len(training.plan.steps) / 2


def test_a_trl_that_moved_a_trainer_skips_that_algorithm_alone(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftbench.errors import Skip

    moved = ("trl.experimental.nowhere", *trainers.PLACES["trl-orpo"][1:])
    monkeypatch.setitem(trainers.PLACES, "trl-orpo", moved)
    with pytest.raises(Skip, match=r"^TRL \d\S* has no trl\.experimental\.nowhere\.ORPOTrainer .*trl-orpo"):
        configure(TrlOrpo, {}).adapt(load(tiny_llama), [])
    monkeypatch.setitem(trainers.PLACES, "trl-orpo", ("trl", "NoSuchTrainer", "ORPOConfig"))
    with pytest.raises(Skip, match=r"has no trl\.NoSuchTrainer"):
        configure(TrlOrpo, {}).adapt(load(tiny_llama), [])
    model = load(tiny_llama)
    assert configure(TrlSft, {}).adapt(model, []) is model
