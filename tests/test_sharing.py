"""What a reference finds is found by one run, taken by others, and by no run that would find something else."""

import json
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ftbench.memory.parts import Parts
from ftbench.recipe import Recipe
from ftbench.results.store import Run
from ftbench.training.clock import Clock
from ftbench.training.encoding import EncodedExample
from ftbench.training.keeping import Keeper
from ftbench.training.logprobs import CompletionLogProbs, completion_logprobs
from ftbench.training.sharing import Pair, Scored, Share
from ftbench.training.trainer import Training
from ftbench.training.watch import StepWatch
from tiny import draw_pairs, load, make_training
from working_here import run

PAIRS = draw_pairs(0, 12)


@dataclass
class Store:
    """Keeps what is found, as JSON would; counts how often it was found."""

    found: dict[str, Scored] = field(default_factory=dict)
    times: int = 0

    def once(self, of: Mapping[str, Any], find: Callable[[], Scored]) -> Scored:
        key = json.dumps(of, sort_keys=True)
        if key not in self.found:
            self.times += 1
            self.found[key] = find()
        return self.found[key]


def training_on(model: PreTrainedModel, store: Store | None, **changed: Any) -> Training:
    """A training whose reference has several micro-batches, and all examples to score."""
    training = make_training(model, PAIRS, tokens=2000)
    share = Share(store.once) if store else None
    return replace(training, share=share, clock=Clock(), watch=StepWatch(), **changed)


def references(training: Training) -> list[Pair | None]:
    return [example.reference for example in training.with_reference().plan.examples]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many examples each pass of a reference scored."""
    counts: list[int] = []

    def score(model: PreTrainedModel, batch: Any, **given: Any) -> CompletionLogProbs:
        counts.append(len(batch))
        return completion_logprobs(model, batch, **given)

    monkeypatch.setattr("ftbench.training.reference.completion_logprobs", score)
    return counts


def test_a_run_of_the_same_reference_takes_what_another_found_to_the_bit(tiny_llama: Path, scored: list[int]) -> None:
    store, model = Store(), load(tiny_llama)
    alone = references(training_on(model, None))
    assert None not in alone
    passes = scored.copy()
    assert references(training_on(model, store)) == alone
    assert scored == [*passes, *passes]
    again = training_on(load(tiny_llama), store)
    assert references(replace(again, settings=replace(again.settings, learning_rate=1.0))) == alone
    assert references(replace(again, plan=replace(again.plan, seed=7))) == alone
    assert scored == [*passes, *passes, passes[0], passes[0]]  # the first micro-batch says what the model is
    assert store.times == 1


def _one_bit(model: PreTrainedModel) -> None:
    """Of a token that stands in no sequence."""
    ids = {one for pair in PAIRS for each in (pair.chosen, pair.rejected) if each for one in each.ids}
    unused = next(one for one in range(259) if one not in ids)
    embedding: Any = model.get_input_embeddings()
    embedding.weight.detach().view(torch.int32)[unused, 0] ^= 1


def _scaled(model: PreTrainedModel) -> None:
    """By what is no weight."""
    model.get_input_embeddings().register_forward_hook(lambda *given: given[-1] * 1.01)


def _read_apart(model: PreTrainedModel) -> None:
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("change", [_one_bit, _scaled, _read_apart, lambda model: model.to(torch.bfloat16)])
def test_another_model_takes_nothing(tiny_llama: Path, change: Callable[[PreTrainedModel], None]) -> None:
    store, other = Store(), load(tiny_llama)
    references(training_on(load(tiny_llama), store))
    change(other)
    assert references(training_on(other, store)) == references(training_on(other, None))
    assert store.times == 2


def _another_token(pairs: tuple[EncodedExample, ...]) -> tuple[EncodedExample, ...]:
    *others, last = pairs
    ids = (*last.chosen.ids[:-1], last.chosen.ids[-1] ^ 1)
    return (*others, replace(last, chosen=replace(last.chosen, ids=ids)))


def _another_prompt(pairs: tuple[EncodedExample, ...]) -> tuple[EncodedExample, ...]:
    *others, last = pairs
    return (*others, replace(last, chosen=replace(last.chosen, prompt_length=last.chosen.prompt_length + 1)))


@pytest.mark.parametrize("change", [_another_token, _another_prompt, lambda pairs: pairs[:-1]])
def test_of_other_examples_nothing_is_taken(
    tiny_llama: Path, change: Callable[[tuple[EncodedExample, ...]], tuple[EncodedExample, ...]]
) -> None:
    store, training = Store(), training_on(load(tiny_llama), None)
    for examples in (PAIRS, change(PAIRS)):
        references(replace(training, share=Share(store.once), plan=replace(training.plan, examples=examples)))
    assert store.times == 2


def test_micro_batches_cut_otherwise_take_nothing(tiny_llama: Path) -> None:
    store, model = Store(), load(tiny_llama)
    for size in (100, 200):
        training = training_on(model, store)
        training.fit.micro_batch_tokens = size
        references(training)
    assert store.times == 2


@pytest.mark.parametrize("why", ["a time limit", "weights that take long to hash", "a single micro-batch"])
def test_nothing_is_shared_where_it_cannot_be_or_does_not_pay(
    why: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    training = training_on(load(tiny_llama), store)
    if why == "a time limit":
        training = replace(training, plan=replace(training.plan, seconds=100.0))
    elif why == "a single micro-batch":
        training.fit.micro_batch_tokens = 10**6
    else:
        monkeypatch.setattr("ftbench.training.reference.RATE", 1.0)
    assert None not in references(training)
    assert store.times == 0


def test_what_was_taken_counts_as_if_it_had_been_done(tiny_llama: Path) -> None:
    store, model = Store(), load(tiny_llama)
    found = training_on(model, store)
    references(found)
    (key,) = store.found
    store.found[key] = replace(store.found[key], seconds=1000.0, peak=Parts(activations=10**12))
    taken = training_on(model, store)
    references(taken)
    assert 1000 < taken.clock() < 1100
    assert taken.clock.booked > 900
    assert taken.watch.peaks["reference"].total == 10**12
    taken.clock.go_on(5.0)
    assert 5 <= taken.clock() < 100
    assert found.watch.peaks["reference"].total > 0
    assert found.clock.booked == 0


def test_waiting_for_another_run_does_not_count(tiny_llama: Path) -> None:
    class Waiting(Store):
        def once(self, of: Mapping[str, Any], find: Callable[[], Scored]) -> Scored:
            time.sleep(2.0)
            return super().once(of, find)

    training = training_on(load(tiny_llama), Waiting())
    start = time.perf_counter()
    references(training)
    assert time.perf_counter() - start - training.clock() > 1.9
    assert training.clock.aside > 1.9
    assert training.clock.booked == 0


class KilledError(Exception):
    """Stands for what ends a process."""


def test_a_training_that_took_its_references_goes_on_with_them(tiny_llama: Path, tmp_path: Path) -> None:
    def margin(logprobs: CompletionLogProbs) -> torch.Tensor:
        return logprobs.mean(logprobs.rejected.log_ratio - logprobs.chosen.log_ratio)

    def train(training: Training, *, killed: bool = False) -> tuple[float, float, torch.Tensor]:
        """Train, at most to the second step where it is to be killed; return what the clock and the keeper say."""
        steps: list[Any] = []

        def report(step: Any) -> None:
            steps.append(step)
            if killed and len(steps) == 2:
                raise KilledError

        keeper = Keeper(tmp_path / "state", "this", 0.0, training.clock)
        try:
            replace(training, report=report, keeper=keeper).with_reference().run(margin)
        finally:
            keeper.close()
        embedding: Any = training.model.get_input_embeddings()
        return training.clock(), keeper.before, embedding.weight.detach()

    store, unasked = Store(), Store()
    references(training_on(load(tiny_llama), store))
    for key, found in store.found.items():
        store.found[key] = replace(found, seconds=1000.0)
    with pytest.raises(KilledError):
        train(training_on(load(tiny_llama), store), killed=True)
    clock, before, weights = train(training_on(load(tiny_llama), unasked))
    (tmp_path / "state").unlink()
    _, _, unbroken = train(training_on(load(tiny_llama), None))
    assert unasked.times == 0
    assert 1000 < before < clock < 1100
    assert torch.equal(weights, unbroken)


def dpo(recipe: Recipe, out: Path, **changed: Any) -> Run:
    """A run of a whole model's DPO, which starts supervised."""
    options = {"adapter": "none", "learning_rate": 1e-4, "beta": 0.1, **changed}
    done = run(recipe.change(algorithm="dpo", options=options, tokens=9000, micro_batch_tokens=600), out)
    assert done.result.status == "ok", done.result.reason
    return done


def test_a_run_that_takes_its_references_ends_as_one_that_found_them(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: list[int]
) -> None:
    made = tmp_path / "cache" / "made"
    monkeypatch.setenv("FTBENCH_CACHE", str(tmp_path / "cache"))
    dpo(recipe, tmp_path / "first", learning_rate=1e-3, beta=0.5)
    passes = scored.copy()
    assert len(passes) > 2
    (kept,) = made.glob("reference-*.json")
    content = json.loads(kept.read_text())
    content["scored"]["seconds"], content["highest"]["peak"] = 500.0, 2**50
    kept.write_text(json.dumps(content))
    taken = dpo(recipe, tmp_path / "second")
    assert scored == [*passes, passes[0]]
    kept.unlink()
    found = dpo(recipe, tmp_path / "third")
    weights = [(one.folder / "model/model.safetensors").read_bytes() for one in (taken, found)]
    assert weights[0] == weights[1]
    assert taken.replies() == found.replies()
    one, other = taken.result.measures, found.result.measures
    assert one.training_seconds is not None
    assert 500 < one.training_seconds < 600
    assert one.phase_seconds["train"] == pytest.approx(one.training_seconds, abs=5)
    assert one.tokens_per_second == pytest.approx((one.training_tokens or 0) / one.training_seconds)
    assert one.phase_peak_bytes["train"] == 2**50
    assert (one.peak_memory_bytes, one.peak_parts) == (other.peak_memory_bytes, other.peak_parts)
    assert (other.training_seconds or 0) < 400


def test_under_another_budget_a_run_finds_its_own(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ftbench.execution.environment import describe
    from ftbench.execution.sharing import share_references
    from ftbench.memory.meter import Meter
    from ftbench.plugins import load_plugins

    monkeypatch.setenv("FTBENCH_CACHE", str(tmp_path))
    cpu = torch.device("cpu")
    here, algorithm, times = describe(cpu, "float32"), load_plugins().make("dpo", {}), 0

    def find() -> Scored:
        nonlocal times
        times += 1
        return Scored([(1.5, -2.5)], 1.0, Parts())

    places = [(recipe, here), (recipe, here), (recipe.change(memory_budget=2**33), here)]
    places += [(recipe, here.model_copy(update={name: value})) for name, value in (("threads", 77), ("hardware", "x"))]
    for asked, where in places:
        share = share_references(algorithm, asked, where, Meter(cpu))
        assert share.once(deepcopy({"weights": "1"}), find).pairs == [(1.5, -2.5)]
    assert times == 4
