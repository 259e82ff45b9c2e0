"""The worker processes that are under way, to be ended together."""

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

import psutil


class Stopped(Exception):  # noqa: N818  somebody asked for it
    """What was asked for is not done, for everything is being ended."""


class Workers:
    """Starts processes and ends them; may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether all were ended."""
        return self._stopped

    def start(self, command: Sequence[str], log: IO[bytes], variables: Mapping[str, str]) -> "subprocess.Popen[str]":
        """Start a process whose standard output is read, and whose errors go to a log.

        Raises:
            Stopped: nothing is to be started any more.
        """
        with self._lock:
            if self._stopped:
                raise Stopped
            # A session of its own: Ctrl-C in the terminal reaches the launcher alone, and that ends the worker.
            worker = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
                env={**os.environ, **variables},
            )
            self._running.add(worker)
        return worker

    def end(self, worker: "subprocess.Popen[str]") -> None:
        """End a process and all that it started, unless it has ended by itself."""
        with self._lock:
            self._running.discard(worker)
        kill(worker)

    def stop(self) -> None:
        """End all."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for worker in running:
            kill(worker)


def kill(worker: "subprocess.Popen[str]") -> None:
    """Kill a process with all that it started, unless it has ended, and wait until it is gone.

    What it started may have a session of its own, as ranks have; they would go on, and hold the pipe that is read.
    """
    if worker.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGSTOP)  # it starts nothing more
        started = _started_by(worker.pid)
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        for process in started:
            with suppress(psutil.Error):
                process.kill()
        worker.wait()


def _started_by(process: int) -> list[psutil.Process]:
    try:
        return psutil.Process(process).children(recursive=True)
    except psutil.Error:
        return []
