"""Tasks that wait for one another, several at once, the longest first."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

_HEED = 0.5
"""Seconds after which a signal is heeded at the latest: one that another thread was given does not end a wait."""


@dataclass(frozen=True, eq=False)
class Task:
    """Something to do once what it comes `after` is done; `seconds` is a guess at how long it takes."""

    do: Callable[[], None]
    seconds: float = 0.0
    after: "Sequence[Task]" = ()


def carry_out(tasks: Sequence[Task], at_once: int, stop: Callable[[], None]) -> None:
    """Do all tasks, `at_once` of them at the same time, each in a thread.

    One at a time keeps the order that they are given in. Otherwise that one is begun first behind which most is still
    to come, itself and the longest chain of those that wait for it. Tasks that wait for nothing then take at most a
    third longer than in the best order (Graham 1969, SIAM J. Appl. Math. 17(2)).

    Args:
        tasks: those that others wait for stand before them.
        at_once: how many threads.
        stop: is called where something goes wrong, or on Ctrl-C (KeyboardInterrupt); makes those end that are begun.

    Raises:
        Exception: the first that a task raised.
    """
    waiting = list(tasks) if at_once == 1 else _longest_first(tasks)
    done: set[Task] = set()
    begun: dict[Future[None], Task] = {}
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while waiting or begun:
                ready = [task for task in waiting if done.issuperset(task.after)][: at_once - len(begun)]
                for task in ready:
                    waiting.remove(task)
                    begun[pool.submit(task.do)] = task
                for ended in wait(begun, _HEED, FIRST_COMPLETED).done:
                    ended.result()
                    done.add(begun.pop(ended))
        except BaseException:
            stop()
            raise


def _longest_first(tasks: Sequence[Task]) -> list[Task]:
    to_come: dict[Task, float] = {}
    for task in reversed(tasks):
        behind = [length for other, length in to_come.items() if task in other.after]
        to_come[task] = task.seconds + max(behind, default=0.0)
    return sorted(tasks, key=lambda task: -to_come[task])
