"""How often intervals over seeds and prompts hold the truth, and how often equal algorithms are called different.

python benchmarks/intervals.py                                          a few minutes

Verdicts are simulated: a reply is on topic where a level, plus what the prompt, the seed and chance add to it (each
normal, chance with deviation 1), is above 0. Five ways to an interval are tried on tables of 64 prompts, and three
tests on pairs of such tables, of algorithms that answer the same prompts: one a copy of the other, or worse by `gap`.
`taken` is what ftbench does. A line a case is added to benchmarks/intervals/simulated.jsonl; what is there is not
simulated again. Every case draws from a generator of its own, whose seed is the case's text.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr

from ftbench.evaluation.comparison import LEVEL, compare
from ftbench.evaluation.crossed import crossed, share_over_seeds
from ftbench.evaluation.statistics import wilson

HERE = Path(__file__).parent
PROMPTS = 64
INTERVAL_TABLES, TEST_TABLES, RESAMPLES = 600, 400, 500
LEVELS = [
    {"level": 0.0, "of_prompts": 1.0, "of_seeds": 0.1},
    {"level": 0.0, "of_prompts": 1.0, "of_seeds": 0.3},
    {"level": 2.5, "of_prompts": 1.0, "of_seeds": 0.1},
    {"level": 2.5, "of_prompts": 1.0, "of_seeds": 0.5},
    {"level": 4.0, "of_prompts": 1.0, "of_seeds": 0.5},
    {"level": 1.5, "of_prompts": 0.5, "of_seeds": 0.8},
]
WORSE = [
    {"level": 2.5, "of_prompts": 1.0, "of_seeds": 0.3, "gap": 1.5},
    {"level": 2.5, "of_prompts": 1.0, "of_seeds": 0.3, "gap": 1.0},
    {"level": 0.0, "of_prompts": 1.0, "of_seeds": 0.3, "gap": 1.0},
    {"level": 0.0, "of_prompts": 1.0, "of_seeds": 0.3, "gap": 2.0},
]
CASES: list[dict[str, Any]] = [
    {"what": what, "seeds": seeds, **levels}
    for what, of in (("interval", LEVELS), ("test", [{**levels, "gap": 0.0} for levels in LEVELS] + WORSE))
    for seeds in (1, 2, 3, 5)
    for levels in of
]

Table = NDArray[Any]
Interval = tuple[float, float]


def main() -> None:
    """Simulate what is not there yet, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    path = HERE / "intervals" / "simulated.jsonl"
    path.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for case in CASES:
        row = next((row for row in rows if row["case"] == case), None)
        if row is None:
            simulate = _intervals if case["what"] == "interval" else _tests
            draw = np.random.default_rng(int(hashlib.sha256(json.dumps(case).encode()).hexdigest()[:16], 16))
            row = {"case": case, **simulate(case, draw)}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        told = " ".join(f"{name} {value}" for name, value in case.items())
        print(told, "|", ", ".join(f"{name} {_said(value)}" for name, value in row.items() if name != "case"))


def _said(value: Any) -> str:
    return f"{value['held']:.2f}/{value['width']:.2f}" if isinstance(value, dict) else f"{value:.3f}"


def _intervals(case: dict[str, Any], draw: np.random.Generator) -> dict[str, Any]:
    """Return how often each way's interval holds the truth, and its mean width."""
    truth = float(ndtr(case["level"] / sqrt(case["of_prompts"] ** 2 + case["of_seeds"] ** 2 + 1)))
    found: dict[str, list[Interval]] = {name: [] for name in WAYS}
    for _ in range(INTERVAL_TABLES):
        verdicts = _verdicts(case, _prompts(case, draw), draw)
        for name, way in WAYS.items():
            found[name].append(way(verdicts, draw))
    figures: dict[str, Any] = {"truth": round(truth, 4)}
    for name, intervals in found.items():
        held = sum(low - 1e-9 <= truth <= high + 1e-9 for low, high in intervals)
        width = sum(high - low for low, high in intervals)
        figures[name] = {"held": held / INTERVAL_TABLES, "width": round(width / INTERVAL_TABLES, 4)}
    return figures


def _tests(case: dict[str, Any], draw: np.random.Generator) -> dict[str, Any]:
    """Return how often each test calls two algorithms different."""
    called = {"prompts alone": 0, "taken": 0}
    for _ in range(TEST_TABLES):
        prompts = _prompts(case, draw)
        verdicts = _verdicts(case, prompts, draw)
        others = _verdicts({**case, "level": case["level"] - case["gap"]}, prompts, draw)
        called["prompts alone"] += _sign_test(verdicts - others) < LEVEL
        p = compare(verdicts, others).p
        called["taken"] += p is not None and p < LEVEL
    return {name: count / TEST_TABLES for name, count in called.items()}


def _prompts(case: dict[str, Any], draw: np.random.Generator) -> Table:
    """Return what each prompt adds, `[1, prompt]`."""
    return case["of_prompts"] * draw.standard_normal((1, PROMPTS))  # type: ignore[no-any-return]


def _verdicts(case: dict[str, Any], prompts: Table, draw: np.random.Generator) -> Table:
    """Return one algorithm's verdicts as 0 and 1, `[seed, prompt]`."""
    seeds = case["of_seeds"] * draw.standard_normal((case["seeds"], 1))
    chance = draw.standard_normal((case["seeds"], PROMPTS))
    return (case["level"] + prompts + seeds + chance > 0).astype(float)  # type: ignore[no-any-return]


def _bootstrap(verdicts: Table, draw: np.random.Generator, fewer: int = 0) -> Interval:
    """Resample seeds and prompts, `fewer` of each than there are (one seed stays one)."""
    seeds, prompts = verdicts.shape
    of_seeds, of_prompts = max(1, seeds - fewer), prompts - fewer
    by_seed = draw.multinomial(of_seeds, np.full(seeds, 1 / seeds), RESAMPLES) / of_seeds
    by_prompt = draw.multinomial(of_prompts, np.full(prompts, 1 / prompts), RESAMPLES) / of_prompts
    low, high = np.quantile(((by_seed @ verdicts) * by_prompt).sum(1), [0.025, 0.975])
    return float(low), float(high)


def _student(verdicts: Table, _: np.random.Generator) -> Interval:
    found = crossed(verdicts)
    half = found.quantile * sqrt(found.variance)
    return found.mean - half, found.mean + half


def _wilson(verdicts: Table, _: np.random.Generator) -> Interval:
    """Wilson's at the number of independent prompts that would have this variance."""
    found = crossed(verdicts)
    spread = found.mean * (1 - found.mean)
    return wilson(found.mean, min(spread / found.variance, verdicts.size) if spread and found.variance else PROMPTS)


def _taken(verdicts: Table, _: np.random.Generator) -> Interval:
    found = share_over_seeds(verdicts)
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


WAYS: dict[str, Callable[[Table, np.random.Generator], Interval]] = {
    "bootstrap": _bootstrap,
    "bootstrap, one fewer": lambda verdicts, draw: _bootstrap(verdicts, draw, 1),
    "Student": _student,
    "Wilson": _wilson,
    "taken": _taken,
}


def _sign_test(differences: Table) -> float:
    """Return p of the sign test over prompts, differences `[seed, prompt]` averaged over seeds; with one, McNemar's."""
    by_prompt = differences.mean(axis=0)
    more, less = int((by_prompt > 0).sum()), int((by_prompt < 0).sum())
    return min(1.0, 2 * float(bdtr(min(more, less), more + less, 0.5))) if more + less else 1.0


if __name__ == "__main__":
    main()
