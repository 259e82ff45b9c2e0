"""What is said of a run that memory was too small for: the budget that would do, or that nobody knows it."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from ftbench.checking.tiny import make_llama
from ftbench.execution.environment import describe
from ftbench.execution.facts import Facts
from ftbench.execution.outcome import build_result
from ftbench.execution.shortage import UNKNOWN, explain_shortage, refused_bytes
from ftbench.memory.budget import budget_for, data_bytes, format_bytes
from ftbench.memory.meter import Meter
from ftbench.memory.parts import Parts
from ftbench.models.loading import weight_bytes
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.result import MemoryPlan
from working_here import run

CPU = torch.device("cpu")
MIB = 2**20
REFUSED = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "3145728 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (str(REFUSED), 3 * MIB),
        ("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 80.00 GiB", 3 * 2**29),
        ("Unable to allocate 20.0 MiB for an array with shape (5, 1048576)", 20 * MIB),
        ("could not create a primitive", 0),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4611686018427387904 bytes", 2**62),
        ("CUDA out of memory. Tried to allocate 0 bytes", 0),
    ],
)
def test_what_was_refused_is_read_from_the_allocators_words(text: str, refused: int) -> None:
    assert refused_bytes(text) == refused


def known(*, weights: int = 0, counted: int = 0, plan: MemoryPlan | None = None) -> Facts:
    meter = Meter(CPU, tensors={"adapt": Parts(parameters=counted)})
    return Facts(meter=meter, environment=describe(CPU, "float32"), weight_bytes=weights, memory_plan=plan)


def planned(*, fits: bool) -> MemoryPlan:
    return MemoryPlan(
        micro_batch_tokens=9, checkpointing=False, fits=fits, predicted_bytes=600 * MIB, needed_bytes=777 * MIB
    )


@pytest.mark.parametrize(
    ("facts", "there"),
    [
        (known(weights=500 * MIB), 500 * MIB),  # base, in loading
        (known(weights=100 * MIB, counted=700 * MIB), 700 * MIB),
        (known(weights=100 * MIB, plan=planned(fits=True)), 600 * MIB),  # reality exceeds the plan
    ],
)
def test_what_was_in_memory_and_what_was_refused_make_a_budget_that_may_do(facts: Facts, there: int) -> None:
    said = explain_shortage(REFUSED, Recipe(memory_budget=100 * MIB), facts)
    assert f"under a budget of 100.00 MiB; {format_bytes(budget_for(there + 3 * MIB, 'cpu'))} may do" in said
    assert "\n" not in said


def test_what_was_predicted_comes_before_what_is_guessed() -> None:
    said = explain_shortage(REFUSED, Recipe(memory_budget=MIB), known(weights=10 * MIB, plan=planned(fits=False)))
    assert "; 777.00 MiB should do (predicted): " in said


def test_no_budget_is_advised_that_no_machine_could_have() -> None:
    absurd = RuntimeError("can't allocate memory: you tried to allocate 4611686018427387904 bytes")
    assert UNKNOWN in explain_shortage(absurd, Recipe(memory_budget=MIB), known(weights=10 * MIB))


def test_what_hides_an_exhausted_memory_is_told_in_its_words() -> None:
    hidden = KeyError("cache")
    hidden.__context__ = REFUSED
    said = explain_shortage(hidden, Recipe(memory_budget=MIB), known(weights=10 * MIB))
    assert "tried to allocate 3145728 bytes" in said
    assert f"{format_bytes(budget_for(13 * MIB, 'cpu'))} may do" in said


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the budget of a process")
def test_the_limit_holds_no_longer_while_the_shortage_is_told(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, limits = resource.getrlimit(resource.RLIMIT_DATA), []

    def fill(phase: str, _: Path) -> None:
        if phase == "data":
            resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + 2**30, before[1]))
            raise MemoryError

    def look(*_: object) -> str:
        limits.append(resource.getrlimit(resource.RLIMIT_DATA))
        return "why"

    monkeypatch.setattr("ftbench.execution.worker.explain_shortage", look)
    try:
        result = run(recipe, tmp_path, fill).result
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert (result.status, result.reason) == ("out-of-memory", "why")
    assert limits == [(before[1], before[1])]


@pytest.mark.parametrize("facts", [Facts(), known(), known(weights=MIB)])
def test_where_nothing_is_known_or_less_than_what_was_not_enough_it_is_said(facts: Facts) -> None:
    assert UNKNOWN in explain_shortage(RuntimeError("not enough memory"), Recipe(memory_budget=2**40), facts)
    assert UNKNOWN in explain_shortage(REFUSED, Recipe(), Facts())


@pytest.mark.parametrize(("budget", "more"), [(300 * MIB, 330 * MIB), (10 * MIB, 13 * MIB)])
def test_more_than_was_known_of_was_there_where_that_would_have_fitted(budget: int, more: int) -> None:
    said = explain_shortage(REFUSED, Recipe(memory_budget=budget), Facts())
    assert f"; {format_bytes(more)} may do (" in said


def test_the_bytes_of_weights_are_those_of_the_loaded_precision(tmp_path: Path) -> None:
    folder = make_llama(tmp_path)
    (folder / "broken.safetensors").write_bytes(b"no header")
    whole, half = weight_bytes(folder, "float32"), weight_bytes(folder, "bf16")
    assert whole == 2 * half > 0
    assert weight_bytes(folder, "float32", mapped=True) == whole
    assert weight_bytes(folder, "bf16", mapped=True) == whole + half  # the file is there beside its copy


@pytest.mark.parametrize(
    ("phase", "tensors", "peak", "kind"),
    [
        ("load", {}, 5000, "resident"),
        ("adapt", {"adapt": Parts(parameters=700)}, 700, "tensors"),
        ("train", {"adapt": Parts(parameters=700), "train": Parts()}, 5000, "resident"),  # in a step not counted
        ("train", {"train": Parts(parameters=700, activations=200)}, 900, "tensors"),
    ],
)
def test_a_run_out_of_memory_has_a_peak_wherever_it_ended(
    phase: str, tensors: dict[str, Parts], peak: int, kind: str
) -> None:
    registry = load_plugins()
    facts = Facts(phase=phase, meter=Meter(CPU, seconds={phase: 1.0}, peak={phase: 5000}, tensors=tensors))
    measures = build_result(Recipe(), registry, facts, "out-of-memory", "why", "now").measures
    assert (measures.peak_memory_bytes, measures.memory_kind) == (peak, kind)
    assert sum(measures.peak_parts.values()) in (0, peak)
    assert all(measures.phase_tensor_bytes.values())
    if phase in ("load", "adapt"):  # what failed otherwise was not ended by memory
        assert build_result(Recipe(), registry, facts, "failed", "why", "now").measures.peak_memory_bytes is None
