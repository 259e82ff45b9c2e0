"""What rank.py does about trainings that break off: on all ranks they go on from what was kept, to the same end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ftbench.models.loading import load_model
from ftbench.models.precision import Precision
from ftbench.plugins import load_plugins
from ftbench.training import statefile
from ftbench.training.clock import Clock
from ftbench.training.keeping import Keeper
from ftbench.training.sharding import Ranks, held, make_mesh, shard
from ftbench.training.statefile import StateFiles
from ftbench.training.trainer import StepReport
from tiny import draw_pairs, make_training

CPU = torch.device("cpu")
KILLED: dict[str, tuple[str, dict[str, Any], Precision]] = {
    "full": ("full", {}, "bf16"),
    "lora with dropout": ("lora", {"dropout": 0.1}, "float32"),
    "dpo": ("dpo", {}, "bf16"),
}


class KilledError(Exception):
    """Stands for what ends all ranks."""


def break_off(case: str, models: Path, ranks: Ranks, out: Path) -> dict[str, Any]:
    """Train a case unbroken, and in pieces; return how often it went on, and all in which the ends differ."""
    name, options, precision = KILLED[case]
    state = out / f"state-{case.replace(' ', '-')}"

    def train(path: Path | None, stop: int = 10**6) -> tuple[dict[str, Tensor], list[Any], int]:
        """Train until `stop` steps were reported here."""
        torch.manual_seed(3 + ranks.index)
        algorithm = load_plugins().make(name, options)
        model = algorithm.adapt(load_model(models / "llama", CPU, precision), [])
        for one in model.parameters():
            torch.distributed.broadcast(one.data, 0)
        shard(model, make_mesh(ranks.count, CPU))
        rows: list[Any] = []
        here = 0

        def report(step: StepReport) -> None:
            nonlocal here
            here += 1
            rows.append(asdict(step))
            if here > stop:
                raise KilledError

        def hear(told: dict[str, Any]) -> None:
            rows[:] = told["rows"]

        clock = Clock(ranks.agree)
        keeper = Keeper(path, "this", 0.0, clock, lambda: {"rows": rows}, hear, ranks)
        plain = make_training(model, draw_pairs(1, 12), tokens=1800, learning_rate=3e-3)
        plan = replace(plain.plan, effective_batch_size=5)
        try:
            algorithm.train(replace(plain, plan=plan, report=report, clock=clock, keeper=keeper, ranks=ranks))
        finally:
            keeper.close()
        return {key: held(one.detach()).clone() for key, one in model.named_parameters()}, rows, keeper.times

    weights, told, _ = train(None)
    for stop in (1, len(told) // 3, 0):
        with suppress(KilledError):
            train(state, stop)
    with suppress(KilledError), killed_before_the_second_takes_its_place():
        train(state)
    with suppress(KilledError), a_full_disk_of_one(ranks):
        train(state, 1)
    kept = sorted(path.name for path in out.glob(f"{state.name}*"))
    again, rows, times = train(state)
    left = sorted(path.name for path in out.glob(f"{state.name}*"))
    ranks.wait()
    if not ranks.leads:
        for share in out.glob(f"{state.name}.1-*"):
            share.unlink()
    ranks.wait()
    anew = train(state)
    differ = [key for key in weights if not torch.equal(weights[key], again[key])]
    lost = [key for key in weights if not torch.equal(weights[key], anew[0][key])]
    return {
        "steps": len(told),
        "times": times,
        "rows differ": rows != told,
        "differ": ranks.gather(differ + lost),
        "files": [kept, left],
        "times without a share": anew[2],
    }


@contextmanager
def killed_before_the_second_takes_its_place() -> Iterator[None]:
    """End all ranks when they have written their second state, and it does not count yet."""
    plain, calls = StateFiles._first, 0

    def first(self: StateFiles, problem: str | None) -> str | None:
        nonlocal calls
        calls += 1
        found = plain(self, problem)
        if calls == 3:
            raise KilledError
        return found

    with patch.object(StateFiles, "_first", first):
        yield


@contextmanager
def a_full_disk_of_one(ranks: Ranks) -> Iterator[None]:
    """Let the last rank find no room for its share."""
    plain: Callable[..., str | None] = statefile._written

    def written(*given: Any) -> str | None:
        return plain(*given) if ranks.leads else "no space left on device"

    with patch.object(statefile, "_written", written):
        yield
