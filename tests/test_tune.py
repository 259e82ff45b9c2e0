"""`ftbench run --tune`: what is tried, what is chosen, on which prompts, at what cost."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftbench.algorithm import rate_of, with_rate
from ftbench.cli import main
from ftbench.cli.running import Runner
from ftbench.cli.tuning import Tuner
from ftbench.data.task import HeldOut, build_task, hold_out
from ftbench.evaluation.evaluate import EvaluatedPrompt
from ftbench.execution.halving import halve
from ftbench.execution.reuse import Inputs
from ftbench.execution.tuning import RUNGS, Score, check_tunable, grid, tune
from ftbench.files import AGAIN, write_jsonl
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.result import Result, Status, Tuning
from ftbench.results.rows import build_groups
from ftbench.results.show import describe_run
from ftbench.results.store import MODEL, REPLIES, Run, read_runs, run_name
from ftbench.results.table import render
from made_results import DATA, HARDWARE, make_run
from one_line import one_line
from strangers import command_line, environment, ftbench_here, install

NOTES = '''
import json
from pathlib import Path

import ftbench


class Notes(ftbench.Algorithm):
    """Writes down what it is trained on, and at what rate."""
    name = "notes"
    def train(self, training):
        texts = [training.tokenizer.decode(example.chosen.ids) for example in training.plan.examples]
        with Path("seen.jsonl").open("a") as file:
            file.write(json.dumps({"rate": training.settings.learning_rate, "texts": texts}) + "\\n")
        super().train(training)


@ftbench.hookimpl
def ftbench_algorithms():
    return [Notes]
'''


# What is asked


@settings(deadline=None, max_examples=200)
@given(st.lists(st.text(max_size=6), unique=True, max_size=60), st.integers(4, 80))
def test_no_prompt_is_in_two_of_training_validation_and_evaluation(prompts: list[str], wanted: int) -> None:
    evaluation, train = hold_out(prompts, str, HeldOut(wanted))
    validation, left = hold_out(prompts, str, HeldOut(wanted, "validation"))
    assert sorted([*evaluation, *validation, *left]) == sorted(prompts)
    assert sorted([*validation, *left]) == sorted(train)
    assert len(validation) == min(wanted, len(train) // 4)


@pytest.mark.parametrize("data", ["sample", "pairs", "oasst1"])
def test_the_validation_task_holds_nothing_of_the_evaluations(data: str, request: pytest.FixtureRequest) -> None:
    source = {"sample": "sample", "pairs": "pairs_file", "oasst1": "oasst1_file"}[data]
    path = source if data == "sample" else str(request.getfixturevalue(source))
    topic = {"sample": "trains", "pairs": "boats", "oasst1": "programming"}[data]
    final, tuning = build_task(path, topic, "en", 64), build_task(path, topic, "en", 64, "validation")
    held_out, asked = ({item.prompt for item in task.evaluation} for task in (final, tuning))
    assert len(asked) >= 4
    assert not asked & held_out
    assert not {example.prompt for example in tuning.train} & (asked | held_out)
    assert {example.prompt for example in tuning.train} | asked == {example.prompt for example in final.train}
    ordinary = {item.ordinary for item in final.evaluation}
    assert not ordinary & {*tuning.ordinary, *tuning.held_out_ordinary}
    assert not {*final.held_out_on_topic} & {*tuning.on_topic, *tuning.held_out_on_topic}


# What is chosen

SCORES = st.lists(st.lists(st.none() | st.floats(0, 64), min_size=3, max_size=3), min_size=5, max_size=5)


@settings(deadline=None, max_examples=100)
@given(SCORES)
def test_halving_gives_every_study_the_same_and_the_last_rungs_best_wins(table: list[list[float | None]]) -> None:
    rates = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]
    tried: list[list[float]] = [[], [], []]

    def score(rate: float, rung: int) -> float | None:
        tried[rung].append(rate)
        return table[rates.index(rate)][rung]

    chosen = halve(rates, [5, 3, 2], score)
    assert tried[0] == rates
    for rung, room in ((1, 3), (2, 2)):
        ended = {rate: value for rate in tried[rung - 1] if (value := table[rates.index(rate)][rung - 1]) is not None}
        best = sorted(ended, key=lambda rate: (-ended[rate], rate))[:room]
        assert tried[rung] == sorted(best)
    values = {rate: [table[rates.index(rate)][rung] for rung in range(3) if rate in tried[rung]] for rate in rates}
    never_failed = {rate: found for rate, found in values.items() if None not in found}
    best_of_all = max(never_failed, key=lambda rate: (len(values[rate]), values[rate][-1], -rate), default=None)
    assert chosen == best_of_all


def reply(text: str, score: float = 0.9, *, prompt: str = "p") -> EvaluatedPrompt:
    return EvaluatedPrompt(
        prompt=prompt, reply=text, base_reply=None, score=score, on_topic=score > 0.5, tokens=3, ended=True,
        ordinary_nll=None, ordinary_tokens=None,
    )  # fmt: skip


def test_a_parrot_has_no_score_and_the_judge_decides_between_equals() -> None:
    parrot = Score.of([reply("A boat.", 1.0)] * 4)
    some = Score.of([reply("A boat.", 0.6), reply("tea", 0.1), reply("rain", 0.1), reply("bread", 0.1)])
    assert parrot.share == 0
    assert some.share == 0.25
    assert some.standing > parrot.standing
    surer = Score.of([reply("A boat.", 0.9), reply("tea", 0.1), reply("rain", 0.1), reply("bread", 0.1)])
    assert surer.standing > some.standing
    almost = Score.of([reply("A boat.", 1.0), *[reply("Sails.", 1.0)] * 3])
    more = Score.of([reply("A boat.", 0.51), reply("Oars.", 0.51), reply("tea", 0.0), reply("rain", 0.0)])
    assert more.standing > almost.standing


@dataclass
class Attempts:
    """Stands for the runs: the replies that a rate leads to, or how else a run with it ends."""

    folder: Path
    replies: Callable[[float], list[EvaluatedPrompt] | Status]
    recipes: list[Recipe]

    def __call__(self, recipe: Recipe) -> Run:
        self.recipes.append(recipe)
        rate = rate_of(recipe.options)
        assert rate is not None
        ended = self.replies(rate)
        values = recipe.model_dump(exclude={"algorithm"})
        measures = {"run_seconds": 2.0}
        folder = self.folder / run_name(recipe)
        (folder / MODEL).mkdir(parents=True)
        if isinstance(ended, str):
            return Run(folder, make_run(recipe.algorithm, status=ended, reason="so it is", **values).result)
        write_jsonl(folder / REPLIES, (item.model_dump() for item in ended))
        return Run(folder, make_run(recipe.algorithm, measures=measures, **values).result)


def tuned(
    tmp_path: Path, replies: Callable[[float], list[EvaluatedPrompt] | Status], algorithm: str = "lora"
) -> tuple[Tuning | None, list[Recipe], str]:
    attempts, said = Attempts(tmp_path, replies, []), list[str]()
    recipe = Recipe(algorithm=algorithm, options={"learning_rate": 1e-3, "rank": 8}, tokens=1000, seed=3)
    return tune(recipe, attempts, said.append), attempts.recipes, "\n".join(said)


def by_distance(best: float) -> Callable[[float], list[EvaluatedPrompt] | Status]:
    """The nearer a rate is to the best, the more of eight replies are on topic."""

    def replies(rate: float) -> list[EvaluatedPrompt] | Status:
        good = max(0, 8 - round(2 * abs(rate - best) / best * 2))
        return [reply(f"boat {index}", 0.9 if index < good else 0.1, prompt=str(index)) for index in range(8)]

    return replies


@pytest.mark.parametrize("best", [3.3e-4, 1e-3, 3e-3])
def test_the_best_rate_wins(tmp_path: Path, best: float) -> None:
    found, recipes, said = tuned(tmp_path, by_distance(best))
    assert found is not None
    assert found.learning_rate == best
    assert f"learning rate {best:g} chosen" in said
    assert "warning" not in said
    assert len(said.splitlines()) == len(recipes) + 1  # a line a trial, and what was chosen
    assert found.validation_prompts == 8
    assert found.seconds == 2.0 * len(recipes) == 20
    assert [trial.run for trial in found.trials] == [run_name(recipe) for recipe in recipes]
    assert not list(tmp_path.glob(f"*/{MODEL}"))


def test_a_rate_that_makes_a_parrot_loses(tmp_path: Path) -> None:
    def replies(rate: float) -> list[EvaluatedPrompt] | Status:
        if rate > 1e-3:
            return [reply("Boats, boats!", 1.0)] * 8
        return [reply(f"boat {index}", 0.6 if index < 3 else 0.2) for index in range(8)]

    found, _, _ = tuned(tmp_path, replies)
    assert found is not None
    assert found.learning_rate <= 1e-3
    assert max(trial.score or 0 for trial in found.trials if trial.learning_rate > 1e-3) == 0


def test_every_algorithm_is_given_the_same_tokens_whatever_comes_out(tmp_path: Path) -> None:
    shapes = {"lora": by_distance(1e-3), "dpo": by_distance(9e-3), "full": lambda rate: [reply("x", 0.1)] * 8}
    spent = {}
    for name, replies in shapes.items():
        found, recipes, _ = tuned(tmp_path / name, replies, name)
        assert found is not None
        assert found.tokens == sum(recipe.tokens for recipe in recipes)
        spent[name] = sorted(recipe.tokens for recipe in recipes)
    assert spent["lora"] == spent["dpo"] == spent["full"] == [250] * 5 + [500] * 3 + [1000] * 2
    assert sum(spent["lora"]) == 4.75 * 1000 == 1000 * sum(share * room for share, room in RUNGS)


def test_trials_ask_validation_prompts_alone_and_differ_in_nothing_else(tmp_path: Path) -> None:
    _, recipes, _ = tuned(tmp_path, by_distance(1e-3))
    for recipe in recipes:
        assert (recipe.split, recipe.attack_prompts, recipe.checkpoints, recipe.seed) == ("validation", 0, 0, 3)
        assert recipe.options["rank"] == 8
    timed = Recipe(algorithm="lora", options={"learning_rate": 1e-3}, training_seconds=80, tokens=1000)
    attempts = Attempts(tmp_path / "timed", by_distance(1e-3), [])
    tune(timed, attempts, print)
    assert {(recipe.tokens, recipe.training_seconds) for recipe in attempts.recipes} == {
        (250, 20), (500, 40), (1000, 80)
    }  # fmt: skip


def test_rates_that_burst_are_out_and_the_rest_is_chosen_from(tmp_path: Path) -> None:
    def replies(rate: float) -> list[EvaluatedPrompt] | Status:
        return "failed" if rate > 2e-4 else by_distance(1e-4)(rate)

    found, recipes, said = tuned(tmp_path, replies)
    assert found is not None
    assert found.learning_rate == 1.1e-4
    assert "rate 0.003, 250 tokens: failed: so it is" in said
    assert len(recipes) == 5 + 1 + 1


def test_where_no_trial_ends_or_the_algorithm_declines_there_is_no_rate(tmp_path: Path) -> None:
    found, recipes, said = tuned(tmp_path / "failed", lambda rate: "out-of-memory")
    assert (found, len(recipes)) == (None, 5)
    assert "not tuned: no trial came to its end" in said
    found, recipes, said = tuned(tmp_path / "skipped", lambda rate: "skipped")
    assert (found, len(recipes), said) == (None, 1, "not tuned: skipped: so it is")


@pytest.mark.parametrize(("best", "word"), [(9e-3, "highest"), (1.1e-4, "lowest")])
def test_a_best_rate_at_the_edge_is_warned_of(tmp_path: Path, best: float, word: str) -> None:
    _, _, said = tuned(tmp_path, by_distance(best))
    assert f"warning: the best rate is the {word} tried" in said


def test_where_nothing_is_learnt_it_is_said(tmp_path: Path) -> None:
    _, _, said = tuned(tmp_path, lambda rate: [reply("tea", 0.1)] * 8)
    assert "warning: at no rate was a single reply of use" in said


def test_the_grid_is_around_the_algorithms_own_rate() -> None:
    assert grid(1.234e-4) == [1.4e-05, 4.1e-05, 1.234e-4, 3.7e-4, 1.1e-3]


def test_the_rate_is_that_of_what_trains_the_task() -> None:
    registry = load_plugins()
    plain = registry.make("mla", {}).config.model_dump(mode="json")
    after = registry.make("mla", {"then": "lora"}).config.model_dump(mode="json")
    assert rate_of(plain) == plain["learning_rate"]
    assert rate_of(after) == after["then_options"]["learning_rate"] != after["learning_rate"]
    changed = with_rate(after, 0.5)
    assert (rate_of(changed), changed["learning_rate"]) == (0.5, after["learning_rate"])
    assert with_rate(plain, 0.5) == {**plain, "learning_rate": 0.5}
    assert registry.make("mla", changed).then.config.learning_rate == 0.5  # type: ignore[union-attr]
    assert rate_of({}) is None


def test_all_seeds_and_budgets_take_the_rate_that_the_first_seed_found_with_most_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load_plugins()
    runner = Runner(registry, tmp_path, Inputs("", None), ())
    monkeypatch.setattr(Runner, "begin", lambda *_, **__: runner)
    attempts = Attempts(tmp_path, by_distance(3e-3), [])
    monkeypatch.setattr(Runner, "launch", lambda _, recipe, name: attempts(recipe))
    options = {"learning_rate": 1e-3}
    recipes = [
        Recipe(algorithm="lora", options=options, seed=seed, memory_budget=budget)
        for seed in (2, 5)
        for budget in (10, 30, 20)
    ]
    tuner = Tuner.begin(recipes, registry, tmp_path, fresh=False)
    assert tuner is not None
    found = [tuner.tuned(recipe) for recipe in recipes]
    assert len(attempts.recipes) == 10
    assert {(recipe.seed, recipe.memory_budget) for recipe in attempts.recipes} == {(2, 30)}
    assert [recipe for recipe, _ in found] == [recipe.change(options={"learning_rate": 3e-3}) for recipe in recipes]
    assert tuner.tuned(Recipe()) == (Recipe(), None)
    assert Tuner.begin([], registry, tmp_path, fresh=False) is None


def test_a_run_is_not_there_for_one_that_was_tuned_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftbench.execution.reuse.changed_versions", lambda *_: [])
    found, _, _ = tuned(tmp_path, by_distance(1e-3))
    assert found is not None
    others = found.model_copy(update={"trials": found.trials[1:]})
    options = {"learning_rate": 1e-3}
    plain = make_run("lora", options=options)
    sought = make_run("lora", options=options, facts={"tuning": found})
    runner = Runner(load_plugins(), tmp_path, Inputs(DATA.digest, None), (plain, sought))
    recipe = plain.result.recipe
    assert runner.find(recipe) is plain
    assert runner.find(recipe, found) is sought
    assert runner.find(recipe, others) is None


def test_a_trial_that_burst_is_there_and_one_that_failed_otherwise_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftbench.execution.reuse.changed_versions", lambda *_: [])
    known = {"data": DATA, "environment": HARDWARE}

    def there(status: Status, phase: str, reason: str = "so it is") -> Run | None:
        run = make_run("lora", status=status, reason=reason, phase=phase, facts=known)
        runner = Runner(load_plugins(), tmp_path, Inputs(DATA.digest, None), (run,))
        assert runner.find(run.result.recipe) is None
        return runner.find_trial(run.result.recipe)

    assert there("failed", "train")
    assert there("failed", "train", f"the disk is full; free some space and {AGAIN}") is None
    assert there("failed", "save") is None
    assert there("out-of-memory", "train") is None


# What cannot be


def test_what_cannot_be_tuned_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(algorithm="lora", options={"learning_rate": 1e-3})
    with one_line("--tune and --from", "validation prompts"):
        check_tunable([recipe.change(start="runs/lora")])
    with one_line("lora has no learning rate above 0"):
        check_tunable([recipe.change(options={"learning_rate": 0.0})])
    monkeypatch.setitem(sys.modules, "optuna", None)
    with one_line("Optuna", 'pip install "ftbench[tune]"'):
        check_tunable([recipe])


def test_without_optuna_nothing_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("subprocess.Popen", pytest.fail)
    with pytest.raises(SystemExit) as ended:
        main(["run", "--algo", "lora", "--tune"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert 'pip install "ftbench[tune]"' in said
    assert not list(tmp_path.iterdir())


def test_runs_that_are_not_tuned_need_no_optuna(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert Tuner.begin([], load_plugins(), tmp_path, fresh=False) is None


# In the table


def made_tuning(rate: float) -> Tuning:
    return Tuning(learning_rate=rate, seed=0, validation_prompts=9, trials=[], tokens=4750, seconds=321.0)


def test_the_table_says_which_rows_were_tuned_and_what_it_cost() -> None:
    options = {"learning_rate": 1e-3, "rank": 8}
    plain = [make_run("base"), make_run("lora", options=options, started=1)]
    assert "learning rate" not in render(build_groups(plain), "github")
    sought = with_rate(options, 3e-3)
    seeds = [
        make_run("lora", options=sought, started=2 + seed, seed=seed, facts={"tuning": made_tuning(3e-3)})
        for seed in (0, 1)
    ]
    text = render(build_groups([*plain, *seeds]), "github")
    heading = [cell.strip() for cell in text.splitlines()[0].split("|")]
    assert "options" not in heading
    rows = [dict(zip(heading, map(str.strip, line.split("|")), strict=True)) for line in text.splitlines()[2:5]]
    assert sorted((row["algorithm"], row["learning rate"], row["tuning s ↓"]) for row in rows) == [
        ("base", "-", "-"), ("lora", "0.001", "-"), ("lora", "0.003", "321")
    ]  # fmt: skip


def test_a_rate_that_was_sought_and_is_the_default_is_a_row_of_its_own() -> None:
    options = {"learning_rate": 1e-3}
    runs = [
        make_run("lora", options=options),
        make_run("lora", options=options, started=1, facts={"tuning": made_tuning(1e-3)}),
    ]
    rows = json.loads(render(build_groups(runs), "json"))
    assert [row["tuning_seconds"] and row["tuning_seconds"]["mean"] for row in rows] in ([None, 321.0], [321.0, None])
    assert {row["learning_rate"] for row in rows} == {1e-3}


def test_show_has_every_trial(tmp_path: Path) -> None:
    found, _, _ = tuned(tmp_path, by_distance(3e-3))
    assert found is not None
    run = make_run("lora", facts={"tuning": found})
    text = describe_run(run, 0)
    assert "sought with seed 3 on 8 validation prompts" in text
    assert "4,750 tokens, 20 s" in text
    for trial in found.trials:
        assert trial.run in text
    assert Result.model_validate_json(run.result.model_dump_json()) == run.result


# From end to end


@dataclass(frozen=True)
class Finished:
    """A tuning that was interrupted, gone on with, and asked for once more."""

    out: Path
    interrupted: int
    second: subprocess.CompletedProcess[str]
    third: subprocess.CompletedProcess[str]

    def trials(self) -> list[Run]:
        return read_runs(self.out / "tuning")[0]

    def final(self) -> list[Run]:
        return [run for run in read_runs(self.out)[0] if run.result.recipe.algorithm == "notes"]


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, pairs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = tmp_path_factory.mktemp("tuned")
    plugins = install(tmp_path_factory.mktemp("site"), "ftbench-notes", NOTES)
    task = ["--model", str(tiny_llama), "--data", str(pairs_file), "--topic", "boats", "--tokens", "800"]
    call = ["run", *task, "--set", "max_new_tokens=8", "--tune", "--algo", "notes", "--seeds", "2"]
    with subprocess.Popen(
        command_line(*call), cwd=place, env=environment(plugins), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as first:
        trials, until = place / "runs" / "tuning", time.monotonic() + 300
        while len(list(trials.glob("notes-*/result.json"))) < 2 and time.monotonic() < until:
            assert first.poll() is None, "it ended before it could be interrupted"
            time.sleep(0.05)
        first.terminate()  # as Ctrl-C, which a shell that put the tests into the background would have switched off
    interrupted = len(list(trials.glob("notes-*/result.json")))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(plugins))
        second, third = (ftbench_here(*call, cwd=place) for _ in range(2))
    return Finished(place / "runs", interrupted, second, third)


def test_an_interrupted_tuning_goes_on_where_it_was(finished: Finished) -> None:
    assert 2 <= finished.interrupted < 10
    assert finished.second.returncode == 0, finished.second.stderr
    names = [run.folder.name for run in finished.trials()]
    assert len(names) == 10
    assert all(re.fullmatch(r"notes-s0-[0-9a-f]{8}", name) for name in names)  # none was run twice
    assert finished.second.stderr.count("notes, tuning: train (") == 10 - finished.interrupted
    assert finished.second.stderr.count("validation prompts, judge") == 10  # a line a trial


def test_the_same_call_again_runs_nothing(finished: Finished) -> None:
    assert finished.third.returncode == 0
    assert finished.third.stdout == finished.second.stdout
    assert "train (" not in finished.third.stderr
    assert finished.third.stderr.count("already there") == 3


def test_no_evaluation_prompt_is_asked_or_trained_on_in_tuning(finished: Finished) -> None:
    final = finished.final()
    evaluation = {item.prompt for item in final[0].replies()}
    assert len(evaluation) == 12
    asked = [{item.prompt for item in run.replies()} for run in finished.trials()]
    assert all(len(prompts) == 9 and not prompts & evaluation for prompts in asked)
    rows = [json.loads(line) for line in (finished.out.parent / "seen.jsonl").read_text().splitlines()]
    in_trials, in_final = rows[:-2], rows[-2:]
    assert len(in_trials) >= 10
    for row in in_trials:
        text = "".join(row["texts"])
        assert len(row["texts"]) == 27
        assert not [prompt for prompt in evaluation | asked[0] if f"\n{prompt}<" in text]
    for row in in_final:  # the validation prompts are training prompts like others
        assert len(row["texts"]) == 36
        assert all(f"\n{prompt}<" in "".join(row["texts"]) for prompt in asked[0])


def test_the_rate_that_was_chosen_is_the_one_that_all_seeds_train_at(finished: Finished) -> None:
    final = finished.final()
    assert [run.result.recipe.seed for run in final] == [0, 1]
    tuning = final[0].result.tuning
    assert tuning is not None
    rows = [json.loads(line) for line in (finished.out.parent / "seen.jsonl").read_text().splitlines()]
    assert {row["rate"] for row in rows[-2:]} == {tuning.learning_rate}
    assert {row["rate"] for row in rows} == set(grid(1e-4))
    for run in final:
        assert run.result.tuning == tuning
        assert run.result.recipe.options["learning_rate"] == tuning.learning_rate
        assert run.result.recipe.split == "evaluation"
    trials = {run.folder.name: run.result for run in finished.trials()}
    assert [trials[trial.run].recipe.tokens for trial in tuning.trials] == [trial.tokens for trial in tuning.trials]
    assert tuning.seconds == pytest.approx(sum(result.measures.run_seconds or 0 for result in trials.values()))
    assert f"learning rate {tuning.learning_rate:g} chosen" in finished.second.stderr
    assert "tuning s ↓" in finished.second.stdout


def test_trials_leave_no_models_and_stand_in_no_table_of_runs(finished: Finished) -> None:
    assert not list((finished.out / "tuning").glob(f"*/{MODEL}"))
    assert {run.result.recipe.algorithm for run in read_runs(finished.out)[0]} == {"base", "notes"}
    assert len(read_runs(finished.out)[0]) == 3
