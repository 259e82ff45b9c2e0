"""All runs of one command: which of them are made, when some are there already."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import pytest

from ftbench.cli.batch import Batch
from ftbench.cli.running import Runner
from ftbench.execution.events import Event
from ftbench.execution.launcher import Order
from ftbench.execution.reuse import Inputs
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results.result import BaselineFacts
from ftbench.results.store import Run
from made_results import DATA, make_run

REGISTRY = load_plugins()


class Writing:
    """A launcher that writes down what it is asked for."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def at_once(self, recipes: Sequence[Recipe]) -> int:
        return 1

    def launch(self, order: Order, on_event: Callable[[Event], None]) -> Run:
        self.orders.append(order)
        return make_run(order.recipe.algorithm, started=50, status="failed" if FAILING in order.recipe.name else "ok",
                        reason="it fails" if FAILING in order.recipe.name else None)  # fmt: skip

    def stop(self) -> None:
        pass


FAILING = "failing"


def ask(there: list[Run], *recipes: Recipe) -> list[tuple[str, str | None]]:
    """Ask for recipes; return what was made, and what each was measured against."""
    launcher = Writing()
    runner = Runner(REGISTRY, Path("runs"), Inputs(DATA.digest, None), tuple(there), launcher=launcher)
    Batch(list(recipes), runner).carry_out()
    return [(each.recipe.algorithm, str(each.baseline.folder) if each.baseline else None) for each in launcher.orders]


@pytest.fixture(autouse=True)
def _same_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftbench.execution.reuse.changed_versions", lambda *_: [])


BASE, LORA = Recipe(algorithm="base"), Recipe(algorithm="lora")


def test_what_was_run_without_a_baseline_is_run_again_once_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    base = make_run("base", started=20)
    measured = BaselineFacts(run=base.folder.name, recipe_digest="", started=base.result.started)
    nothing = {"forgetting": None}
    unmeasured = make_run("lora", started=10, measures=nothing)
    whole = make_run("lora", started=5, measures=nothing, facts={"baseline": measured})
    assert ask([unmeasured, base], BASE, LORA) == [("lora", str(base.folder))]
    said = capsys.readouterr().err.splitlines()
    assert f"lora: run again, for {unmeasured.folder} has no forgetting: there was no base then" in said
    assert ask([whole, unmeasured, base], BASE, LORA) == []
    assert ask([unmeasured], LORA) == []  # no baseline is asked for


def test_while_the_baseline_fails_what_is_there_is_not_run_again() -> None:
    failing = BASE.change(name=FAILING)
    assert ask([make_run("lora", measures={"forgetting": None})], failing, LORA) == [("base", None)]
    assert ask([], failing, LORA) == [("base", None), ("lora", None)]
