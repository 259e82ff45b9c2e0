import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ftbench.algorithm import Algorithm, configure
from ftbench.errors import UsageError
from ftbench.plugins import load_plugins
from ftbench.registry import Registry
from ftbench.training.logprobs import CompletionLogProbs, SequenceLogProbs, completion_logprobs
from ftbench.training.trainer import StepReport
from ftbench_dpo import Dpo
from one_line import one_line
from tiny import draw_pairs, load, logits, make_training, train


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_plugins()


def drawn(seed: int) -> tuple[list[Tensor], CompletionLogProbs]:
    """Random chosen, rejected, their references (nats) and lengths, in float64."""
    draw = torch.Generator().manual_seed(seed)
    sums = [-100 * torch.rand(5, generator=draw, dtype=torch.float64) for _ in range(4)]
    lengths = [torch.randint(1, 40, (5,), generator=draw) for _ in range(2)]
    chosen, rejected = (SequenceLogProbs(sums[i], lengths[i], sums[i + 2]) for i in range(2))
    return [*sums, *lengths], CompletionLogProbs(chosen, rejected)


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_losses_are_the_papers(seed: int, beta: float) -> None:
    (c, r, ref_c, ref_r, n_c, n_r), logprobs = drawn(seed)
    rows = zip(*(values.tolist() for values in (c, r, ref_c, ref_r, n_c, n_r)), strict=True)
    expected: dict[str, list[float]] = {"sigmoid": [], "hinge": [], "ipo": []}
    for chosen, rejected, reference_chosen, reference_rejected, length, other_length in rows:
        up, down = chosen - reference_chosen, rejected - reference_rejected
        x = beta * (up - down)
        expected["sigmoid"].append(-x + math.log1p(math.exp(x)) if x < 0 else math.log1p(math.exp(-x)))
        expected["hinge"].append(max(0.0, 1 - x))
        expected["ipo"].append((up / length - down / other_length - 1 / (2 * beta)) ** 2)
    for name, values in expected.items():
        loss = configure(Dpo, {"loss": name, "beta": beta}).loss(logprobs)
        assert loss.item() == pytest.approx(sum(values) / 5, rel=1e-9)


@pytest.mark.parametrize(("loss", "first"), [("sigmoid", math.log(2)), ("hinge", 1.0), ("ipo", 25.0)])
def test_the_first_loss_is_that_of_no_preference(tiny_llama: Path, registry: Registry, loss: str, first: float) -> None:
    algorithm = registry.make("dpo", {"loss": loss, "beta": 0.1})
    reports = train(algorithm, algorithm.adapt(load(tiny_llama), []), tokens=4000)
    after = [report for report in reports if report.stage == "train"]
    assert after[0].loss == pytest.approx(first, rel=1e-5)
    assert after[-1].loss < after[0].loss


def test_the_supervised_start_takes_its_share_of_the_tokens(tiny_llama: Path, registry: Registry) -> None:
    algorithm = registry.make("dpo", {"sft_share": 0.25, "sft_learning_rate": 3e-3})
    reports = train(algorithm, algorithm.adapt(load(tiny_llama), []), tokens=8000)
    start = [report for report in reports if report.stage == "supervised"]
    assert sum(report.tokens for report in start) == pytest.approx(2000, abs=200)
    assert sum(report.tokens for report in reports) == pytest.approx(8000, abs=600)
    assert max(report.learning_rate for report in start) == pytest.approx(3e-3)


def test_from_a_run_there_is_no_supervised_start(tiny_llama: Path, registry: Registry) -> None:
    algorithm = registry.make("dpo", {})
    reports: list[StepReport] = []
    model = algorithm.adapt(load(tiny_llama), [])
    algorithm.train(make_training(model, draw_pairs(0, 8), start="lora-s0-12345678", reports=reports))
    assert {report.stage for report in reports} == {"train"}


def test_with_an_adapter_the_reference_is_the_model_with_the_adapter_off(tiny_llama: Path, registry: Registry) -> None:
    algorithm = registry.make("dpo", {"sft_share": 0})
    pairs = draw_pairs(0, 8)
    model: Any = algorithm.adapt(load(tiny_llama), [])
    referred = make_training(model, pairs, tokens=10**4).with_reference()
    algorithm.train(make_training(model, pairs, learning_rate=1e-2))
    with model.disable_adapter(), torch.no_grad():
        off = completion_logprobs(model, referred.plan.examples)
    with torch.no_grad():
        on = completion_logprobs(model, referred.plan.examples)
    torch.testing.assert_close(off.chosen.log_ratio, torch.zeros(8), rtol=0, atol=1e-4)
    assert on.chosen.log_ratio.abs().max() > 0.1


def test_training_needs_no_second_model(tiny_llama: Path, registry: Registry) -> None:
    """The reference is scores: while training there are the weights, their gradients and AdamW's two moments."""
    import gc

    algorithm = registry.make("dpo", {"adapter": "none"})
    model = algorithm.adapt(load(tiny_llama), [])
    shape = model.get_input_embeddings().weight.shape
    alive = []

    def count() -> int:
        tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, torch.nn.Parameter)]
        return len({tensor.data_ptr() for tensor in tensors if tensor.shape == shape})

    class Counting(type(algorithm)):  # type: ignore[misc]
        def loss(self, logprobs: CompletionLogProbs) -> Tensor:
            alive.append(count())
            loss: Tensor = super().loss(logprobs)
            return loss

    gc.collect()  # what earlier tests left
    before = count()
    reports = train(Counting(algorithm.config), model)
    assert {report.stage for report in reports} == {"supervised", "train"}
    assert before >= 1
    assert max(alive) <= before + 3


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_the_chosen_gain_on_the_rejected(tiny_llama: Path, registry: Registry, loss: str) -> None:
    algorithm = registry.make("dpo", {"loss": loss, "adapter": "none"})
    model = algorithm.adapt(load(tiny_llama), [])
    pairs = draw_pairs(0, 8)

    def margin() -> float:
        with torch.no_grad():
            found = completion_logprobs(model, pairs)
        return (found.chosen.sums - found.rejected.sums).mean().item()

    before = margin()
    algorithm.train(make_training(model, pairs, tokens=4000, learning_rate=1e-3))
    assert margin() > before + 1


def test_without_an_adapter_every_weight_is_trained_saved_and_loaded(
    tiny_llama: Path, tmp_path: Path, registry: Registry
) -> None:
    algorithm = registry.make("dpo", {"adapter": "none"})
    model = algorithm.adapt(load(tiny_llama), [])
    assert all(parameter.requires_grad for parameter in model.parameters())
    train(algorithm, model)
    algorithm.save(model, tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()
    loaded = algorithm.load(tmp_path / "saved", lambda other: load(other or tiny_llama))
    assert torch.equal(logits(loaded), logits(model))


def test_with_an_adapter_that_alone_is_saved(tiny_llama: Path, tmp_path: Path, registry: Registry) -> None:
    algorithm = registry.make("dpo", {"adapter_options": {"rank": 2}})
    model = algorithm.adapt(load(tiny_llama), [])
    train(algorithm, model)
    algorithm.save(model, tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} >= {"adapter_model.safetensors"}
    assert not (tmp_path / "saved" / "model.safetensors").exists()
    loaded = algorithm.load(tmp_path / "saved", lambda other: load(other or tiny_llama))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_learning_rate_follows_the_trainable_part_unless_given(registry: Registry) -> None:
    def rate(**options: Any) -> float:
        found: float = registry.make("dpo", options).config.learning_rate
        return found

    assert rate(adapter="none") == Dpo.Config.full_learning_rate
    assert rate() == rate(adapter="lora") == Dpo.Config().learning_rate > rate(adapter="none")
    assert rate(adapter="none", learning_rate=0.5) == rate(learning_rate=0.5) == 0.5


@pytest.mark.parametrize(
    "options", [{"beta": 0}, {"loss": "sigmod"}, {"sft_share": 1.0}, {"sft_share": -0.1}, {"bata": 0.1}]
)
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="algorithm 'dpo'"):
        configure(Dpo, options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapter": "lroa"}, ["'dpo'", "adapter", "'lroa'", "'lora'", "'none'"]),
        ({"adapter": "base"}, ["'dpo'", "adapter", "'base'", "no other loss"]),
        ({"adapter": "full"}, ["'dpo'", "adapter", "'full'", "'none'"]),
        ({"adapter": "orpo"}, ["'dpo'", "adapter", "'orpo'", "no other loss"]),
        ({"adapter": "peft:adalora"}, ["'dpo'", "adapter", "'peft:adalora'", "no other loss"]),
        ({"adapter_options": {"learning_rate": 1e-3}}, ["'dpo'", "dpo.learning_rate"]),
        ({"adapter_options": {"rnak": 4}}, ["'dpo'", "'lora'", "'rnak'", "'rank'"]),
        ({"adapter_options": {"rank": 0}}, ["'dpo'", "'lora'", "rank"]),
    ],
)
def test_an_adapter_that_is_not_there_is_named(registry: Registry, options: dict[str, Any], words: list[str]) -> None:
    with one_line(*words, kind=UsageError):
        registry.make("dpo", options)


@pytest.mark.parametrize(("adapter", "option"), [("lora", "dropout"), ("peft:vera", "method")])
def test_all_that_the_adapter_is_stands_in_the_configuration(registry: Registry, adapter: str, option: str) -> None:
    made = registry.make("dpo", {"adapter": adapter})
    written = made.config.model_dump(mode="json")
    assert option in written["adapter_options"]
    assert "learning_rate" not in written["adapter_options"]
    again = registry.make("dpo", written)
    assert again.config == made.config
    assert again.adapter is not None
    assert made.adapter is not None
    assert again.adapter.config.model_dump(exclude={"learning_rate"}) == made.adapter.config.model_dump(
        exclude={"learning_rate"}
    )


def test_an_adapters_file_is_read_once(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"peft_type": "LORA", "r": 3}')
    written = registry.make("dpo", {"adapter": f"peft:{path}"}).config.model_dump(mode="json")
    path.unlink()
    again = registry.make("dpo", written)
    assert again.config.adapter == "peft:mine"
    assert again.adapter is not None
    assert again.adapter.config.settings == {"r": 3}


def test_the_plugin_brings_dpo_alone() -> None:
    from ftbench_dpo import ftbench_algorithms

    assert ftbench_algorithms() == [Dpo]
    assert issubclass(Dpo, Algorithm)
