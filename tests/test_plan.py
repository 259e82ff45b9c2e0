"""Predictions from fake tensors and shallow models, held against whole models and against what training takes."""

import gc
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from ftbench.algorithm import Algorithm
from ftbench.checking.tiny import make_llama
from ftbench.cli import main
from ftbench.errors import ContractError, Unpredictable
from ftbench.execution import fitting
from ftbench.execution import forecast as forecasting
from ftbench.execution.fitting import plan_memory
from ftbench.execution.forecast import Question, forecast, ways_to_cut
from ftbench.memory.budget import budget_for, format_bytes, parse_budget, room_under
from ftbench.memory.fit import Fit, Reduction
from ftbench.memory.ledger import Ledger
from ftbench.memory.parts import Parts
from ftbench.memory.plan import Cut, Forecast, choose, extrapolate, highest, smallest
from ftbench.memory.standin import standing_in_for
from ftbench.models.loading import load_tokenizer, weight_bytes
from ftbench.models.skeleton import load_config, with_layers
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.training import optimiser
from ftbench.training.batching import Plan
from ftbench.training.encoding import EncodedExample, TokenSequence
from ftbench.training.optimiser import MasterAdamW
from ftbench.training.row import lay_out, rounded, row_length
from ftbench.training.trainer import OptimiserSettings, Training
from ftbench.training.weight import heaviest_of, weigh
from tiny import drop_nothing, load

REGISTRY = load_plugins()
CPU = torch.device("cpu")
SIZES = st.integers(0, 2**40)
PARTS = st.builds(Parts, SIZES, SIZES, SIZES, SIZES, SIZES)


@pytest.fixture(scope="module")
def deep_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 5 layers, so that it is predicted from shallower ones."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 5}
    return make_llama(tmp_path_factory.mktemp("deep"), **sizes)


def make_plan(lengths: tuple[int, ...], *, pairs: bool, steps: int = 3) -> Plan:
    """Steps that all hold one example of each length, so that the heaviest is in every step."""
    examples = [
        EncodedExample(TokenSequence((5,) * length, 9), TokenSequence((6,) * (length - 3), 9) if pairs else None)
        for length in lengths
    ]
    return Plan(tuple(examples), steps * sum(example.tokens for example in examples), len(lengths), seed=0)


def train_for_real(folder: Path, name: str, plan: Plan, cut: Cut) -> Parts:
    """Train, and return the highest point that was counted, less what others left in this process."""
    gc.collect()
    others = Ledger()
    others.claim_rest("activations")
    plain, options = REGISTRY.resolve(name)
    algorithm = REGISTRY.make(plain, options)
    model = load(folder)
    drop_nothing(model)
    model = algorithm.adapt(model, [example.chosen.ids for example in plan.examples])
    settings = OptimiserSettings(1e-4, 0.0, 0.0, 1.0)
    fit = Fit(cut.micro_batch_tokens, cut.checkpointing)
    tokenizer = load_tokenizer(folder)
    training = Training(model, tokenizer, plan, fit, settings, lambda _: None, None, algorithm.packed)
    algorithm.train(training)
    peak = max(training.watch.peaks.values(), key=lambda parts: parts.total)
    return replace(peak, activations=peak.activations - others.now.activations)


def predict(folder: Path, name: str, plan: Plan, *cuts: Cut) -> list[Forecast]:
    plain, options = REGISTRY.resolve(name)
    return forecast(Question(load_config(folder), plan, CPU, "float32"), REGISTRY.make(plain, options), cuts)


ALL_CUTS = [Cut(10**6, False), Cut(150, False), Cut(10**6, True), Cut(150, True)]
ACCUMULATED, CHECKPOINTED = ALL_CUTS[1], ALL_CUTS[2]


@pytest.mark.parametrize(
    ("name", "cuts"),
    [
        ("full", ALL_CUTS),
        ("lora", [ACCUMULATED, CHECKPOINTED]),
        ("dpo", [ACCUMULATED, CHECKPOINTED]),
        *((name, [ACCUMULATED]) for name in ("orpo", "simper", "simpo")),
        *((f"peft:{name}", [ACCUMULATED]) for name in ("dora", "ia3", "oft", "vera")),
    ],
)
def test_the_predicted_peak_is_what_training_takes(name: str, cuts: list[Cut], deep_llama: Path) -> None:
    plain, options = REGISTRY.resolve(name)
    pairs = REGISTRY.make(plain, options).needs == "preferences"
    # Alike, so that no order of the examples makes another peak; enough for two steps in each of two stages.
    plan = make_plan((60,) * 4, pairs=pairs, steps=8 if pairs else 2)
    for cut, predicted in zip(cuts, predict(deep_llama, name, plan, *cuts), strict=True):
        measured = train_for_real(deep_llama, name, plan, cut)
        assert predicted.peak.total == pytest.approx(measured.total, rel=0.05), cut
        assert predicted.peak.parameters == measured.parameters


@pytest.mark.parametrize("piece", [2**14, 2**17, 2**30])
def test_an_update_takes_what_its_pieces_allow_in_a_deep_model_as_in_a_shallow_one(
    piece: int, deep_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights of a few layers may be moved at once, of many not: no straight line leads from one to the other."""
    monkeypatch.setattr(optimiser, "PIECE", {"cpu": piece})
    plan = make_plan((12,) * 2, pairs=False)
    (predicted,) = predict(deep_llama, "full", plan, ALL_CUTS[0])
    assert predicted.moment == "train: update"
    measured = train_for_real(deep_llama, "full", plan, ALL_CUTS[0])
    assert predicted.peak.total == pytest.approx(measured.total, rel=0.02)


def unequal(lengths: Sequence[tuple[int, int, int]]) -> list[EncodedExample]:
    """Pairs of a prompt and two completions of these lengths, each prompt another."""
    examples = []
    for place, (prompt, *sizes) in enumerate(lengths, 3):
        chosen, rejected = (TokenSequence((place,) * prompt + (200,) * size, prompt) for size in sizes)
        examples.append(EncodedExample(chosen, rejected))
    return examples


# In a row of its own: most tokens, as its prompt counts twice; the longest; most completion tokens.
SHARED = unequal([(420, 4, 4), (300, 80, 80), (1, 100, 100)])
# Padded: most tokens, and most completion tokens; the most cells.
PADDED = unequal([(125, 125, 125), (100, 2, 200)])


@pytest.mark.parametrize(("packed", "examples"), [(True, SHARED), (False, PADDED)])
def test_the_peak_is_that_of_the_heaviest_rows_as_they_are_laid_out(
    packed: bool, examples: list[EncodedExample], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(tuple(examples), 5 * sum(example.tokens for example in examples), len(examples), seed=0)
    monkeypatch.setattr(REGISTRY.find("orpo"), "packed", packed)
    cut = Cut(1, False)
    predicted, measured = predict(tiny_llama, "orpo", plan, cut)[0], train_for_real(tiny_llama, "orpo", plan, cut)
    assert predicted.peak.total == pytest.approx(measured.total, rel=0.05)


def test_every_way_to_be_heavy_is_looked_at() -> None:
    shared, padded = ([(example,) for example in examples] for examples in (SHARED, PADDED))
    assert heaviest_of(shared, padded=False) == [shared[1], shared[2]]
    assert heaviest_of(padded, padded=True) == [padded[1], padded[0]]


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9)), max_size=5), st.booleans())
def test_a_row_is_weighed_as_it_is_laid_out(lengths: list[tuple[int, int, int]], twice: bool) -> None:
    examples = unequal(lengths) * (2 if twice else 1)
    sequences = [one for pair in examples for one in (pair.chosen, pair.rejected) if one is not None]
    assert rounded(row_length(sequences)) == len(lay_out(sequences).ids)
    assert weigh(examples, padded=False)[1] == lay_out(sequences).scores


@pytest.mark.parametrize("name", ["full", "dpo"])
def test_two_shallow_models_tell_what_the_whole_one_would(
    name: str, deep_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan((200, 180, 150), pairs=name == "dpo")
    cuts = [Cut(200, False), Cut(10**6, True)]
    shallow = predict(deep_llama, name, plan, *cuts)
    monkeypatch.setattr(forecasting, "DEPTHS", (5, 6))
    whole = predict(deep_llama, name, plan, *cuts)
    for guessed, seen in zip(shallow, whole, strict=True):
        assert guessed.peak.total == pytest.approx(seen.peak.total, rel=0.01)
        assert guessed.accumulation == seen.accumulation


def test_layers_that_are_not_alike_are_probed_as_they_are(deep_llama: Path, tmp_path: Path) -> None:
    config = json.loads((deep_llama / "config.json").read_text())
    config["layer_types"] = ["full_attention", "sliding_attention"] * 2 + ["full_attention"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert with_layers(load_config(deep_llama), 3) is not None
    assert with_layers(load_config(tmp_path), 3) is None


@given(PARTS, PARTS, st.integers(1, 4), st.integers(1, 4), st.integers(8, 100))
def test_what_is_a_straight_line_is_extrapolated_exactly(
    fixed: Parts, layer: Parts, few: int, further: int, layers: int
) -> None:
    def of(count: int) -> Parts:
        return Parts(*(a + count * b for a, b in zip(vars(fixed).values(), vars(layer).values(), strict=True)))

    found = extrapolate((few, {"m": of(few)}), (few + further, {"m": of(few + further)}), layers)
    assert vars(found["m"]) == pytest.approx(vars(of(layers)), rel=1e-9)


def test_the_highest_moment_of_a_deep_model_may_be_another_than_that_of_a_shallow_one() -> None:
    shallow = {"start": Parts(logits=100, activations=2), "end": Parts(gradients=20)}
    deep = {"start": Parts(logits=100, activations=3), "end": Parts(gradients=30)}
    assert highest(shallow)[0] == "start"
    assert highest(extrapolate((2, shallow), (3, deep), 100)) == ("end", Parts(gradients=1000))


FORECASTS = [
    Forecast(Cut(400, False), 1, Parts(activations=900), "x"),
    Forecast(Cut(200, False), 2, Parts(activations=1000), "x"),  # accumulation keeps the gradients
    Forecast(Cut(100, False), 4, Parts(activations=700), "x"),
    Forecast(Cut(400, True), 1, Parts(activations=500), "x"),
    Forecast(Cut(100, True), 4, Parts(activations=450), "x"),
]


@pytest.mark.parametrize(
    ("room", "chosen"),
    [(10**6, 0), (1000, 0), (899, 2), (700, 2), (699, 3), (500, 3), (499, 4), (450, 4), (449, None), (0, None)],
)
def test_the_largest_micro_batch_that_fits_is_chosen_and_checkpointing_only_if_it_must(
    room: int, chosen: int | None
) -> None:
    assert choose(FORECASTS, room) == (None if chosen is None else FORECASTS[chosen])
    assert smallest(FORECASTS) is FORECASTS[4]


def test_ways_to_cut_go_from_a_whole_step_down_to_one_example() -> None:
    plan = make_plan((30, 60, 45, 70), pairs=False)
    assert [cut.micro_batch_tokens for cut in ways_to_cut(plan, 10**6)] == [205, 102, 70] * 2
    assert [cut.micro_batch_tokens for cut in ways_to_cut(plan, 100)] == [100, 70] * 2
    assert [cut.micro_batch_tokens for cut in ways_to_cut(plan, 1)] == [70] * 2
    assert [cut.checkpointing for cut in ways_to_cut(plan, 1)] == [False, True]


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Cut, ...]]:
    """Which cuts were asked about; what was forecast once of an algorithm with as many examples is not again."""
    asked: list[tuple[Cut, ...]] = []
    known: dict[tuple[object, ...], list[Forecast]] = {}

    def remember(question: Question, algorithm: Algorithm, cuts: list[Cut]) -> list[Forecast]:
        asked.append(tuple(cuts))
        of = (id(question), algorithm.name, *cuts)
        if of not in known:
            known[of] = forecast(question, algorithm, cuts)
        return known[of]

    monkeypatch.setattr(fitting, "forecast", remember)
    return asked


@pytest.mark.usefixtures("probed")
def test_the_effective_batch_is_never_what_gives_way(deep_llama: Path) -> None:
    plan = make_plan((200,) * 4, pairs=False)
    question = Question(load_config(deep_llama), plan, CPU, "float32")
    recipe = Recipe(algorithm="full", effective_batch_size=4, micro_batch_tokens=400)
    free = plan_memory(recipe, REGISTRY.make("full", {}), question, "cpu")
    assert (free.micro_batch_tokens, free.accumulation, free.fits) == (400, 2, None)
    assert free.predicted_bytes is not None
    tight = recipe.change(memory_budget=budget_for(free.predicted_bytes, "cpu") - 10**6)
    fitted = plan_memory(tight, REGISTRY.make("full", {}), question, "cpu")
    assert fitted.fits
    assert fitted.micro_batch_tokens < 400 or fitted.checkpointing
    assert fitted.accumulation is not None
    assert fitted.accumulation * (fitted.micro_batch_tokens // 200) >= 4
    hopeless = plan_memory(recipe.change(memory_budget=10**6), REGISTRY.make("full", {}), question, "cpu")
    assert hopeless.fits is False
    assert hopeless.needed_bytes is not None
    assert hopeless.needed_bytes > 10**6


@pytest.mark.parametrize(
    ("name", "options", "lengths", "highest_at", "asked"),
    [  # loading takes more than training does, and less
        ("lora", {"rank": 1}, (16,) * 2, "train: update", [1]),
        ("full", {}, (500,) * 2, "train: update", [1, 3]),
    ],
)
def test_where_no_cut_could_take_less_no_other_is_tried(
    name: str,
    options: dict[str, Any],
    lengths: tuple[int, ...],
    highest_at: str,
    asked: list[int],
    deep_llama: Path,
    probed: list[tuple[Cut, ...]],
) -> None:
    recipe = Recipe(algorithm=name, effective_batch_size=2, memory_budget=10**5)
    question = Question(load_config(deep_llama), make_plan(lengths, pairs=False), CPU, "bf16")
    plan = plan_memory(recipe, REGISTRY.make(name, options), question, "cpu")
    assert (plan.moment, plan.fits, [len(cuts) for cuts in probed]) == (highest_at, False, asked)
    every = ways_to_cut(question.plan, recipe.micro_batch_tokens)
    assert sum(asked) in (1, len(every))
    if len(every) > sum(asked):  # those that were left out would indeed have taken no less
        others = forecast(question, REGISTRY.make(name, options), every)
        assert plan.needed_bytes == budget_for(min(each.need for each in others), "cpu")


def test_a_model_that_cannot_checkpoint_is_planned_without(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GPT2LMHeadModel, "supports_gradient_checkpointing", False)
    recipe = Recipe(algorithm="full", effective_batch_size=2, memory_budget=10**6, device="cpu")
    question = Question(load_config(tiny_gpt2), make_plan((400,) * 2, pairs=False), CPU, "float32")
    plan = plan_memory(recipe, REGISTRY.make("full", {}), question, "cpu")
    assert (plan.fits, plan.reason, plan.micro_batch_tokens, plan.checkpointing) == (False, None, 400, False)
    assert forecast(question, REGISTRY.make("full", {}), [Cut(400, True)]) == []


def test_loading_is_planned_where_the_file_is_in_another_precision(tiny_llama: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    weights = weight_bytes(tiny_llama, "float32")
    for folder, needed in ((tiny_llama, weights), (tmp_path, weights + weights // 2)):
        question = Question(load_config(folder), make_plan((12,) * 2, pairs=False), CPU, "float32")
        for _ in range(2):  # what was asked about stays as it was
            assert [each.load for each in forecast(question, REGISTRY.make("lora", {}), [Cut(9, False)])] == [needed]
    with standing_in_for("cuda"):  # which is handed one weight after the other
        assert [each.load for each in forecast(question, REGISTRY.make("lora", {}), [Cut(9, False)])] == [0]


def test_a_budget_holds_what_loading_takes() -> None:
    low, high = (Forecast(Cut(400, False), 1, Parts(activations=900), "x", load) for load in (100, 2000))
    assert choose([low], 900) == low
    assert choose([high], 1999) is None
    assert choose([high], 2000) == high
    assert high.least
    assert not low.least


def test_a_card_that_is_not_here_is_planned_for_in_its_own_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    plain = MasterAdamW.__init__

    def look(self: MasterAdamW, parameters: list[torch.nn.Parameter], *rest: float) -> None:
        plain(self, parameters, *rest)
        made.append(max(len(group.pieces) for group in self._groups))

    monkeypatch.setattr(MasterAdamW, "__init__", look)
    monkeypatch.setattr(optimiser, "PIECE", {"cpu": 2**10, "cuda": 2**26})
    folder = make_llama(tmp_path)
    question = Question(load_config(folder), make_plan((40,) * 2, pairs=False), CPU, "bf16")
    recipe = Recipe(algorithm="full", effective_batch_size=2)
    for device in ("cpu", "cuda"):
        plan_memory(recipe, REGISTRY.make("full", {}), question, device)
    assert made[0] < made[-1] == len(list(load(folder).parameters()))


def test_a_plan_says_what_it_is_for(deep_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--algo", "lora", "--model", str(deep_llama), "--device", "cuda"])
    out = capsys.readouterr().out
    assert "- planned for cuda, in bf16" in out
    assert ("there is none here" in out) != torch.cuda.is_available()


@pytest.mark.parametrize(("filed", "said"), [("float32", True), ("bfloat16", False)])
def test_a_plan_says_once_where_loading_takes_more_than_training(
    filed: str, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**LLAMA_8B, "torch_dtype": filed}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = ["plan", "--algo", "lora", "--model", str(tmp_path), "--memory-budget", "1GiB,2GiB"]
    with pytest.raises(SystemExit):
        main([*asked, "--set", "precision=bf16"])
    out = capsys.readouterr().out
    assert out.count("no: needs") == 2
    assert out.count("- lora: loading takes more than training: 44.87 GiB") == said


def test_an_algorithm_that_looks_at_values_or_brings_its_own_trainer_cannot_be_predicted(deep_llama: Path) -> None:
    plan = make_plan((40, 40), pairs=True)
    with pytest.raises(Unpredictable, match="trainer of its own"):
        predict(deep_llama, "trl-dpo", plan, Cut(100, False))
    algorithm = REGISTRY.make("full", {})

    def look(model: Any, calibration: Any) -> Any:
        assert next(iter(model.parameters())).sum().item() < 10**9
        return model

    algorithm.adapt = look  # type: ignore[method-assign]
    with pytest.raises(Unpredictable, match="DataDependent"):
        forecast(Question(load_config(deep_llama), plan, CPU, "float32"), algorithm, [Cut(100, False)])


def test_a_model_that_looks_at_values_cannot_be_predicted(deep_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object) -> Any:
        return torch.nonzero(torch.ones(2)).tolist()

    monkeypatch.setattr(forecasting, "build_skeleton", look)
    question = Question(load_config(deep_llama), make_plan((40,) * 2, pairs=False), CPU, "float32")
    with pytest.raises(Unpredictable):
        forecast(question, REGISTRY.make("full", {}), [Cut(100, False)])


def test_an_algorithm_that_raises_takes_no_other_plan_with_it(
    deep_llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def untrainable(*_: object) -> Any:
        raise ContractError("adapt returns no model", "adapt")

    monkeypatch.setattr(REGISTRY.find("orpo"), "skip", lambda *_: 1 / 0)
    monkeypatch.setattr(REGISTRY.find("dpo"), "adapt", untrainable)
    asked = [part for name in ("orpo", "dpo", "lora") for part in ("--algo", name)]
    with pytest.raises(SystemExit) as ended:
        main(["plan", *asked, "--model", str(deep_llama)])
    out = capsys.readouterr().out
    assert ended.value.code in (0, None)
    assert "- orpo: would fail: " in out
    assert "ZeroDivisionError" in out
    assert re.search(r"- dpo: would fail: plugin ftbench-dpo .*adapt returns no model", out)
    assert re.search(r"^lora +\d", out, re.MULTILINE)


LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False, "rms_norm_eps": 1e-05,
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak apart from its parent's")
def test_a_model_far_larger_than_the_machine_is_planned_from_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    script = """
import sys
from pathlib import Path
from ftbench.cli import main
try:
    main(sys.argv[1:])
finally:
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(line for line in lines if line.startswith("VmHWM")).split()[1], file=sys.stderr)
"""
    command = ["plan", "--algo", "full", "--algo", "lora", "--model", str(tmp_path), "--memory-budget", "80GiB"]
    command += ["--set", "precision=bf16"]
    done = subprocess.run(
        [sys.executable, "-c", script, *command, "--json"], capture_output=True, text=True, check=False
    )
    full, lora = json.loads(done.stdout)
    weights = 8_030_261_248 * 2  # bf16
    assert full["plan"]["predicted_parts"]["parameters"] == weights
    assert full["plan"]["predicted_parts"]["optimiser"] == pytest.approx(4 * weights, rel=1e-6)  # lower halves, moments
    assert not full["plan"]["fits"]
    assert full["plan"]["needed_bytes"] > 6 * weights
    assert lora["plan"]["fits"]
    assert lora["plan"]["predicted_bytes"] > weights
    assert int(done.stderr.split()[-1]) < 2**20  # KiB


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory-budget", "0"], "positive"),
        (["--memory-budget", "-1GiB"], "memory budget"),
        (["--memory-budget", "1GiB,"], "memory budget"),
        (["--memory-budget", "0%"], "between 0% and 100%"),
        (["--memory-budget", "101%"], "between 0% and 100%"),
        (["--memory-budget", "99999999TiB"], "more than any machine"),
        (["--algo", "lorra"], "lora"),
        (["--model", "./nowhere"], "no such model folder"),
    ],
)
def test_a_wrong_plan_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--algo", "full", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_plan_for_several_budgets_has_a_line_for_each(deep_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--algo", "full", "--algo", "base", "--algo", "trl-sft", "--model", str(deep_llama),
              "--memory-budget", "1MiB,2GiB", "--set", "precision=float32"])  # fmt: skip
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "1.00 MiB" in out
    headings, _, small, large = (re.split(r"\s{2,}", line.strip()) for line in out.splitlines()[:4])
    assert headings[:3] == ["algorithm", "budget", "fits"]
    assert headings[3:9] == ["peak", "parameters", "gradients", "optimiser", "activations", "logits"]
    assert re.fullmatch(r"no: needs \d+\.\d\d MiB", small[2])
    assert (large[1], large[2]) == ("2.00 GiB", "yes")
    assert small[4] == large[4] == format_bytes(weight_bytes(deep_llama, "float32"))
    assert "- base: nothing is trained" in out
    assert "- trl-sft: cannot be predicted: it brings a trainer of its own" in out


@given(st.integers(0, 2**50), st.sampled_from(["cpu", "cuda"]))
def test_what_is_asked_for_is_enough_and_a_byte_less_is_not(tensors: int, device: str) -> None:
    budget = budget_for(tensors, device)
    assert room_under(budget, device) >= tensors
    assert tensors == 0 or room_under(budget - 1, device) < tensors


def test_a_share_is_of_the_devices_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_budget("80%", lambda: 1000) == 800
    assert parse_budget(" 12.5 % ", lambda: 1000) == 125
    assert parse_budget("100%", lambda: 1000) == 1000
    assert parse_budget("2KiB", lambda: pytest.fail("asked")) == 2048


def test_the_fit_is_shared_by_all_stages() -> None:
    fit = Fit(100)
    assert fit.reduce("supervised", 0, [(3, 90), (1, 95)], can_checkpoint=True)
    assert (fit.micro_batch_tokens, fit.checkpointing) == (45, False)
    assert fit.reduce("train", 4, [(1, 30)], can_checkpoint=True)
    assert (fit.micro_batch_tokens, fit.checkpointing) == (45, True)
    assert not fit.reduce("train", 4, [(1, 30)], can_checkpoint=True)
    assert fit.reductions == [
        Reduction("supervised", 0, 45, checkpointing=False), Reduction("train", 4, 45, checkpointing=True)
    ]  # fmt: skip
    assert not Fit(100).reduce("train", 0, [(1, 90)], can_checkpoint=False)
