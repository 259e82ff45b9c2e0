"""A command of ftbench, or anything in Python, in a process of its own: what it took."""

import os
import subprocess
import sys
from time import perf_counter
from typing import IO


def once(arguments: list[str], out: int | IO[str] = subprocess.DEVNULL) -> tuple[float, int]:
    """Return the seconds of one command and its highest resident memory, bytes; what it prints goes to `out`."""
    return python(["-m", "ftbench", *arguments], out)


def python(arguments: list[str], out: int | IO[str] = subprocess.DEVNULL) -> tuple[float, int]:
    """Return the same of Python itself.

    Raises:
        SystemExit: it did not end well.
    """
    start = perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=out)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    return perf_counter() - start, usage.ru_maxrss * 1024
