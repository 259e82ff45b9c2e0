"""The ledger is held against sums that can be worked out by hand, and against torch's own profiler."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ftbench.memory.ledger import Ledger
from ftbench.memory.parts import Parts
from ftbench.training import watch
from ftbench.training.encoding import EncodedExample, TokenSequence
from ftbench.training.optimiser import MasterAdamW
from ftbench.training.watch import StepWatch, worth_counting
from tiny import draw_pairs, load, make_training

KIB = 1024


def test_storages_are_counted_once_and_until_they_are_freed() -> None:
    with Ledger() as ledger, ledger.moment("all"):
        one = torch.zeros(KIB, dtype=torch.uint8)
        views = [one[:10], one.view(2, -1), one.detach()]
        assert ledger.now == Parts(activations=KIB)
        two = one.repeat(2)
        assert ledger.now.total == 3 * KIB
        del two
        assert ledger.now.total == KIB
        del one
        assert ledger.now.total == KIB  # the views hold it
        del views
        assert ledger.now.total == 0
    assert ledger.peaks == {"all": Parts(activations=3 * KIB)}


def test_what_was_there_before_counts_once_it_is_claimed() -> None:
    weight, other = torch.zeros(3, KIB, dtype=torch.uint8), torch.zeros(KIB, dtype=torch.uint8)
    with Ledger() as ledger:
        ledger.claim("parameters", [weight, weight[0], None])
        assert ledger.now == Parts(parameters=3 * KIB)
        before = ledger.now.total
        ledger.claim_rest("activations")
        assert ledger.now.activations >= KIB
        assert ledger.now.parameters == 3 * KIB
        found = ledger.now.total - before
        del other
        assert ledger.now.total == before + found - KIB


def test_a_sparse_tensor_is_its_indices_and_values() -> None:
    ledger = Ledger()
    sparse = torch.eye(16).to_sparse()
    ledger.claim("parameters", [sparse])
    assert ledger.now == Parts(parameters=16 * 2 * 8 + 16 * 4)
    ledger.claim_rest("activations")
    assert ledger.now.parameters == 16 * 2 * 8 + 16 * 4


def test_fake_tensors_are_told_their_device_without_a_further_operation() -> None:
    with FakeTensorMode(), torch.device("cuda"), Ledger() as ledger:
        made = torch.empty(KIB, dtype=torch.uint8)
        assert made.device.type == "cuda"
        assert (made + 1).device == made.device
        assert ledger.now.total == KIB


def test_a_peak_belongs_to_its_own_moment() -> None:
    with Ledger() as ledger:
        with ledger.moment("big"):
            torch.zeros(4 * KIB, dtype=torch.uint8)
        torch.zeros(64 * KIB, dtype=torch.uint8)
        with ledger.moment("small"):
            torch.zeros(KIB, dtype=torch.uint8)
        with ledger.moment("big"):
            torch.zeros(2 * KIB, dtype=torch.uint8)
    assert {name: parts.total for name, parts in ledger.peaks.items()} == {"big": 4 * KIB, "small": KIB}


def test_logits_are_told_by_their_last_dimension() -> None:
    with Ledger(vocabulary=7) as ledger:
        kept = torch.zeros(5, 7), torch.zeros(5, 8), torch.zeros(7)
        assert ledger.now == Parts(logits=5 * 7 * 4, activations=5 * 8 * 4 + 7 * 4)
        del kept


def linear_step(fake: bool) -> dict[str, Parts]:
    """One step of AdamW on y = sum(x W) with everything's size known."""
    with FakeTensorMode() if fake else torch.enable_grad():
        weight = torch.nn.Parameter(torch.zeros(32, 64))
        inputs = torch.zeros(16, 32)
        optimiser = torch.optim.AdamW([weight], fused=True)
        ledger = Ledger()
        ledger.claim("parameters", [weight])
        ledger.claim("activations", [inputs])
        with ledger:
            with ledger.moment("forward"):
                loss = (inputs @ weight).sum()
            with ledger.moment("backward"):
                loss.backward()
            assert weight.grad is not None
            ledger.claim("gradients", [weight.grad])
            with ledger.moment("update"):
                optimiser.step()
    return ledger.peaks


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
def test_a_step_of_a_linear_layer_is_what_can_be_worked_out(fake: bool) -> None:
    weight, inputs, product, scalar = 32 * 64 * 4, 16 * 32 * 4, 16 * 64 * 4, 4
    peaks = linear_step(fake)
    assert peaks["forward"] == Parts(parameters=weight, activations=inputs + product + scalar)
    # d(sum) is an expanded scalar; mm's backward then makes the gradient of the weight
    assert peaks["backward"].total == weight + inputs + 2 * scalar + weight
    assert peaks["update"].parameters == weight
    assert peaks["update"].gradients == weight
    assert peaks["update"].total == 4 * weight + inputs + 2 * scalar  # two moments, AdamW's step, the loss


def profiled_peak(folder: Path, *, pairs: bool) -> tuple[int, int]:
    """Bytes at the peak of a training step by torch's profiler, which sees the allocator, and by the ledger."""
    gc.collect()
    others = Ledger()
    others.claim_rest("activations")  # what other tests left lives too, and is counted
    model = load(folder)
    examples = draw_pairs(0, 8)
    training = make_training(model, examples, tokens=3 * sum(example.tokens for example in examples))
    training.fit.micro_batch_tokens = 10**6
    training = training if pairs else training.demonstrations("train")
    training.run(lambda logprobs: logprobs.nll())
    counted = training.watch.peaks["train"].total - others.now.total
    gc.collect()
    start = sum(parameter.numel() * 4 for parameter in model.parameters())
    again = make_training(load(folder), examples, tokens=training.plan.tokens)
    again.fit.micro_batch_tokens = 10**6
    again = again if pairs else again.demonstrations("train")
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        again.run(lambda logprobs: logprobs.nll())
    total = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return start + peak, counted


@pytest.mark.parametrize("pairs", [False, True], ids=["demonstrations", "pairs"])
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_the_peak_of_training_is_the_allocators(kind: str, pairs: bool, request: pytest.FixtureRequest) -> None:
    allocated, counted = profiled_peak(request.getfixturevalue(kind), pairs=pairs)
    assert counted == pytest.approx(allocated, rel=0.05)


def test_only_the_heaviest_steps_are_counted(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    plain = watch.counted

    def noted(*arguments: Any) -> Any:
        counts.append(1)
        return plain(*arguments)

    monkeypatch.setattr(watch, "counted", noted)
    model = load(tiny_llama)
    optimiser = MasterAdamW(list(model.parameters()), 1e-3, 0.0)
    for from_start, expected in ((False, [0, 1, 2, 2]), (True, [1, 2, 3, 3])):
        counts.clear()
        steps = StepWatch(from_start=from_start)
        steps.expect("train", [[(example(size, 1),)] for size in (9, 3, 5, 4)], limited=False)
        seen = []
        for index in range(4):
            with steps.step("train", index, model, optimiser.tensors) as moment, moment("all"):
                torch.zeros(1000)
            seen.append(len(counts))
        assert seen == expected


def example(prompt: int, completion: int) -> EncodedExample:
    return EncodedExample(TokenSequence((5,) * (prompt + completion), prompt), None)


@pytest.mark.parametrize(
    ("sizes", "limited", "expected"),
    [
        ([(9, 1)], False, {0}),
        ([(9, 1), (2, 1)], False, {1}),
        ([(1, 1), (2, 1), (3, 1), (4, 1), (3, 1)], False, {1, 3}),
        ([(1, 1), (2, 1), (3, 1), (4, 1), (3, 1)], True, {1, 2, 3}),
        ([(1, 1), (2, 2), (9, 1), (1, 3), (1, 1)], False, {1, 2, 3}),
    ],
)
def test_what_is_worth_counting(sizes: list[tuple[int, int]], limited: bool, expected: set[int]) -> None:
    steps = [[(example(1, 1),), (example(*size),)] for size in sizes]
    assert worth_counting(steps, limited=limited) == expected


def test_what_was_counted_is_kept_when_a_step_fails(tiny_llama: Path) -> None:
    model, steps = load(tiny_llama), StepWatch()
    optimiser = MasterAdamW(list(model.parameters()), 1e-3, 0.0)

    def fail() -> None:
        steps.expect("train", [[(draw_pairs(0, 1)[0],)]], limited=False)
        with steps.step("train", 0, model, optimiser.tensors) as moment, moment("all"):
            torch.zeros(1000)
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert steps.peaks["train"].total >= 4000 + sum(parameter.numel() * 4 for parameter in model.parameters())
