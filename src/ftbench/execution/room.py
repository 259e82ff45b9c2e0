"""What a run asks a Ray cluster for, and whether a node of it has that."""

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ftbench.errors import FtbenchError
from ftbench.execution.launcher import Order
from ftbench.execution.machine import LOADED
from ftbench.memory.budget import format_bytes

PATIENCE = 300.0
"""Seconds that a run waits for a node that could take it while the cluster has none: one may be starting anew."""
LOOK = 10.0
"""Seconds between two looks at the cluster."""
_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
"""Ray has a name for what is asked, and another for what a node has."""

Node = Mapping[str, float]


def ask_for(order: Order, nodes: Sequence[Node], jobs: int | None) -> dict[str, Any]:
    """Return what a run asks for: cards where the cluster has some, and the cores that are its share of the least node.

    Args:
        order: the run.
        nodes: what each has, as Ray says it.
        jobs: runs at once on a node, if that is limited.
    """
    recipe = order.recipe
    on_cards = recipe.device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes)
    if on_cards:
        able = [node for node in nodes if node.get("GPU", 0) >= recipe.devices]
        shares = [node.get("CPU", 0) * recipe.devices / node["GPU"] for node in able]
        asked: dict[str, Any] = {"num_gpus": recipe.devices}
    else:
        able = [node for node in nodes if node.get("CPU", 0) >= 1]
        shares = [node["CPU"] / (jobs or 1) for node in able]
        asked = {"memory": recipe.devices * (recipe.memory_budget + LOADED)} if recipe.memory_budget else {}
    if on_cards and jobs:
        shares = [max(share, node.get("CPU", 0) / jobs) for share, node in zip(shares, able, strict=True)]
    return {"num_cpus": max(1, int(min(shares, default=1))), **asked}


def check_room(asked: Mapping[str, float], nodes: Sequence[Node], since: str = "") -> None:
    """See that a node has what a run asks for, were it free.

    Args:
        asked: as `ask_for` returns it.
        nodes: what each has.
        since: how long that has been so, if it was otherwise before.

    Raises:
        FtbenchError: none has.
    """
    if any(all(node.get(_NAMES[name], 0) >= amount for name, amount in asked.items()) for node in nodes):
        return
    wanted = _describe({_NAMES[name]: amount for name, amount in asked.items()})
    kinds = Counter(map(_describe, nodes)).items()
    there = ", ".join(f"{count} x ({kind})" if count > 1 else f"({kind})" for kind, count in kinds) or "no node"
    raise FtbenchError(
        f"no node of the Ray cluster has room for it{since}: it asks for ({wanted}), and there is {there}; add such a "
        "node, or ask for less (--jobs, --devices, --memory-budget), and run it again"
    )


def _describe(node: Node) -> str:
    """Write down what a node has, or a run asks for."""
    amounts = {name: node[name] for name in _NAMES.values() if node.get(name)}
    return ", ".join(
        f"{name} {format_bytes(amount) if name == 'memory' else f'{amount:g}'}" for name, amount in amounts.items()
    )


class Cluster:
    """The living nodes of a Ray cluster, which is asked of them every few seconds by however many runs wait."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._lock = threading.Lock()
        self._nodes: list[Node] = []
        self._looked = float("-inf")

    def nodes(self) -> list[Node]:
        """Return what each living node has, free or not, as Ray says it."""
        with self._lock:
            if time.monotonic() - self._looked >= LOOK / 2:
                self._nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
                self._looked = time.monotonic()
            return self._nodes

    def wait_for(self, task: Any, asked: Mapping[str, float]) -> None:
        """Wait until a task is over, whatever its end.

        Raises:
            FtbenchError: for PATIENCE seconds no node could have taken it; the task is ended.
        """
        able = time.monotonic()
        while not self._ray.wait([task], timeout=LOOK)[0]:
            try:
                check_room(asked, self.nodes(), f" for {PATIENCE:g} s")
                able = time.monotonic()
            except FtbenchError:
                if time.monotonic() - able < PATIENCE:
                    continue
                self._ray.cancel(task, force=True)  # a node that comes now is not to begin it
                raise
