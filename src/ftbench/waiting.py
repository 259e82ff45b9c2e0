"""How the threads of a process wait for one another."""

import os

WAITING = {"GOMP_SPINCOUNT": "4000"}
"""Times that a thread of GNU's OpenMP looks whether the others are done, before it sleeps; by itself 300,000."""


def brief_waiting() -> dict[str, str]:
    """Return the variables by which threads wait briefly before they sleep; none where the user's own say how.

    libgomp reads them when it is loaded, with torch. Where cores have something else to do, a thread is set aside now
    and then, and the others, which turn in place for it, take the core that it needs: of two trainings side by side on
    two cores, each operation took twenty times as long as now, and beside a busy process, a third longer. Where
    nothing else runs, looking less long was not to be told from the machine's own ups and downs
    (benchmarks/waiting.py).
    """
    return {} if {"OMP_WAIT_POLICY", *WAITING} & os.environ.keys() else dict(WAITING)
