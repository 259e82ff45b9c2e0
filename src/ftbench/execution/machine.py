"""The local launcher: runs on this machine, as many at once as it has room for."""

import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from ftbench.errors import UsageError
from ftbench.execution.environment import NO_CARD
from ftbench.execution.events import Event
from ftbench.execution.launcher import Order
from ftbench.execution.slots import THREADS, Slots, usable_cores, visible_cards
from ftbench.execution.workers import Workers
from ftbench.memory.budget import check_budget, device_memory
from ftbench.recipe import Recipe
from ftbench.results.address import outbox
from ftbench.results.store import Run

LOADED = 640 * 2**20
"""Bytes of a worker before its budget begins: interpreter and libraries; 550 MiB resident were measured."""


def check_devices(recipes: Sequence[Recipe]) -> None:
    """See that this machine has the devices that recipes ask for, and these the memory.

    Raises:
        UsageError: CUDA is asked for and there is none, or a budget is more than a device has.
    """
    cards = visible_cards()
    if any(recipe.device == "cuda" for recipe in recipes) and not cards:
        raise UsageError(NO_CARD)
    for recipe in recipes:
        if recipe.memory_budget is not None:
            check_budget(recipe.memory_budget, "cuda" if cards and recipe.device != "cpu" else "cpu")


class LocalLauncher:
    """Makes runs on this machine: one a card; on the processor one, or as many as somebody asks for."""

    def __init__(self, jobs: int | None = None) -> None:
        """Make at most `jobs` runs at once; None: one a card, one on the processor."""
        self._jobs = jobs
        self._workers = Workers()
        self._cards = Slots(visible_cards(), runs=jobs)
        self._processor = Slots([str(number) for number in range(jobs or 1)], device_memory("cpu"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def at_once(self, recipes: Sequence[Recipe]) -> int:
        """Return how many of these recipes can be run at once."""
        return max((self._slots(recipe).at_once for recipe in recipes), default=1)

    def launch(self, order: Order, on_event: Callable[[Event], None]) -> Run:
        """Make a run in a process of its own; see the protocol."""
        from ftbench.execution.local import Place, launch  # imports torch, and what was mistyped is to be told before
        from ftbench.results.delivery import deliver_or_keep

        recipe, box = order.recipe, outbox(order.out)
        slots = self._slots(recipe)
        on_cards = slots is self._cards
        needed = 0 if on_cards else recipe.devices * ((recipe.memory_budget or 0) + LOADED)
        with slots.take(recipe.devices if on_cards else 1, needed) as devices:
            variables = {"CUDA_VISIBLE_DEVICES": ",".join(devices)} if on_cards else threads_for(self._share)
            run = launch(
                recipe,
                order.registry,
                box,
                order.baseline,
                on_event,
                order.tuning,
                save_every=order.save_every,
                fresh=order.fresh,
                report_to=order.report_to,
                place=Place(variables, self._workers),
            )
        return run if box == order.out else deliver_or_keep(run)  # no device waits for the network

    def stop(self) -> None:
        """End all workers."""
        for slots in (self._cards, self._processor):
            slots.stop()
        self._workers.stop()

    def _slots(self, recipe: Recipe) -> Slots:
        return self._cards if recipe.device != "cpu" and len(self._cards) else self._processor

    @property
    def _share(self) -> int | None:
        """How many threads a run on the processor computes with; None: as many as it would by itself."""
        return max(1, usable_cores() // self._jobs) if self._jobs and self._jobs > 1 else None


def threads_for(share: int | None) -> dict[str, str]:
    """Return the variables that give a worker its share of threads, or fewer where the user's own say so."""
    if share is None:
        return {}
    asked = [int(text) for text in map(os.environ.get, THREADS) if text and text.isdigit()]
    return dict.fromkeys(THREADS, str(min([share, *asked])))
