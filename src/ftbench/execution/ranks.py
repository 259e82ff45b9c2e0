"""A run over several devices: a worker for each, started and watched as torchrun does.

`python -m ftbench.execution.ranks DEVICES FOLDER …`: what follows DEVICES is the worker's. One that dies
ends the others.
"""

import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path

from ftbench.execution.slots import THREADS, usable_cores
from ftbench.results.store import RESULT
from ftbench.training.sharding import Ranks

_WORKER, _HERE = "ftbench.execution.worker", "ftbench.execution.ranks"
_STARTER = "FTBENCH_STARTER"
"""The variable that tells a rank which process started it."""
_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection was closed")
"""What torch's collectives say when another rank is gone."""


def worker_module(devices: int) -> tuple[str, ...]:
    """Return the module that is the worker of a run over so many devices, and what it is told first."""
    return (_WORKER,) if devices == 1 else (_HERE, str(devices))


def main() -> None:
    """Start a worker for each device; end as the one that died did, if it left no result."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    devices, folder = int(sys.argv[1]), Path(sys.argv[2])
    _check_cards(devices)
    os.environ[_STARTER] = str(os.getpid())
    for name in THREADS:  # what the run has is shared out: each rank would take it all
        threads = os.environ.get(name, "")
        has = int(threads) if threads.isdigit() else usable_cores()
        os.environ[name] = str(max(1, has // devices))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", _WORKER, *sys.argv[2:])
    except ChildFailedError as error:
        if (folder / RESULT).is_file():
            sys.exit(1)
        killed = {rank: -one.exitcode for rank, one in error.failures.items() if one.exitcode < 0}
        for rank, number in killed.items():
            print(f"rank {rank} of {devices} was ended by {signal.Signals(number).name}", file=sys.stderr, flush=True)
            signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
            os.kill(os.getpid(), number)  # whoever waits for this process then knows how it ended
        rank, first = error.get_first_failure()
        sys.exit(f"rank {rank} of {devices} ended with code {first.exitcode}")


def _check_cards(devices: int) -> None:
    """End here where there are cards, and fewer than are asked for."""
    import torch

    seen = torch.cuda.device_count()
    if 0 < seen < devices:
        sys.exit(f"{devices} devices are asked for, and torch sees {seen} here; say --devices {seen}, or --device cpu")


def join() -> Ranks:
    """Return which rank this process is; one of several ends with what started it, and has its own card."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks()
    import torch

    starter = int(os.environ[_STARTER])  # which may be gone by now: a rank imports for seconds before it comes here

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return Ranks(count, int(os.environ["RANK"]))


def is_lost(error: BaseException) -> bool:
    """Whether another rank is gone: why is not for this one to say."""
    return any(words in str(error).lower() for words in _LOST)


if __name__ == "__main__":
    main()
