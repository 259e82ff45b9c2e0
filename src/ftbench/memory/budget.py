"""The memory budget: read from text, enforced in the run's own process."""

import re
import resource
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ftbench.errors import UsageError
from ftbench.memory.groups import group_limits

if TYPE_CHECKING:
    import torch

UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
LARGEST = 2**60
"""More bytes than any machine has."""
_BESIDE_TENSORS = {
    "cpu": (384 * 2**20, 5),
    "cuda": (64 * 2**20, 8),
}
"""What a budget must hold beside tensors: a fixed amount in bytes (kernels, their buffers, libraries) and a percentage
(blocks of memory that are free and too small, tensors within kernels). Measured on the CPU; CUDA's are guesses.
"""


def parse_bytes(text: str) -> int:
    """Read "4GiB", "512 MiB", "8GB" or plain bytes.

    Raises:
        UsageError: not a positive amount in a known unit, or beyond all machines.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in UNITS:
        raise UsageError(f"cannot read memory budget '{text}'; write for example 4GiB, 800MiB or 6GB")
    amount = float(match[1]) * UNITS[match[2].lower()]
    if amount < 1:
        raise UsageError(f"memory budget '{text}' is not a positive amount")
    if amount > LARGEST:
        raise UsageError(f"memory budget '{text}' is more than any machine has; write for example 4GiB, 800MiB or 6GB")
    return int(amount)


def parse_budget(text: str, total: Callable[[], int]) -> int:
    """Read bytes, as `parse_bytes` does, or a share of the device's memory such as "80%".

    Args:
        text: what the user wrote.
        total: bytes of the device's memory; asked only for a share.

    Raises:
        UsageError: neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if not match:
        return parse_bytes(text)
    percent = float(match[1])
    if not 0 < percent <= 100:
        raise UsageError(f"memory budget '{text}' is not a share between 0% and 100%")
    return max(1, int(total() * percent / 100))


def device_memory(name: str) -> int:
    """Bytes of memory that the device "cpu", "cuda" or "auto" (CUDA where there is some) has, or lets a process have.

    Raises:
        UsageError: CUDA's is asked for and there is none.
    """
    if name != "cpu":
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(0).total_memory)
        if name == "cuda":
            raise UsageError("a share of a card's memory, and torch sees no CUDA device here; give the budget in bytes")
    import psutil

    limits = [int(psutil.virtual_memory().total)]
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limits.append(hard)
    return min(limits + group_limits())


def format_bytes(amount: float) -> str:
    """Write bytes in the largest binary unit that leaves at least one: 3221225472 is "3.00 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.2f} {unit}"


def room_under(budget: int, device: str) -> int:
    """Return how many bytes of tensors should fit under a budget on "cpu" or "cuda"."""
    fixed, percent = _BESIDE_TENSORS[device]
    return max(0, (budget - fixed) * 100 // (100 + percent))


def budget_for(tensors: int, device: str) -> int:
    """Return the budget, in bytes, that so many bytes of tensors should need."""
    fixed, percent = _BESIDE_TENSORS[device]
    return -(-tensors * (100 + percent) // 100) + fixed


def check_budget(budget: int | None, device: str) -> int:
    """See that a device, by the name that `device_memory` takes, has what is budgeted; return what it has, bytes.

    Raises:
        UsageError: the budget is more, or is of the processor's memory where no limit can be set to that.
    """
    if budget is not None and device == "cpu" and sys.platform != "linux":
        raise UsageError("a memory budget on the processor is enforced on Linux alone; leave --memory-budget out")
    total = device_memory(device)
    if budget is not None and budget > total:
        raise UsageError(f"memory budget {format_bytes(budget)} is more than the {format_bytes(total)} that are there")
    return total


def enforce_budget(budget: int | None, device: "torch.device", since: int | None = None) -> None:
    """Make allocations beyond `budget` bytes fail in this process, from now on.

    CUDA: a cap on the caching allocator. CPU: RLIMIT_DATA, counted from what the process holds now, so that the
    budget is what the run adds to the loaded interpreter.

    Args:
        budget: in bytes; None is no limit.
        device: what it is of.
        since: `data_bytes` from which on the process's memory counts; by default from now on.

    Raises:
        UsageError: the budget is more than the device has.
    """
    if budget is None:
        return
    total = check_budget(budget, device.type)
    if device.type == "cuda":
        import torch

        index = torch.cuda.current_device() if device.index is None else device.index  # torch takes no other
        torch.cuda.set_per_process_memory_fraction(budget / total, index)
    else:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = (data_bytes() if since is None else since) + budget
        if hard != resource.RLIM_INFINITY:  # which nobody may pass
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def lift_budget(device: "torch.device") -> None:
    """Let the process's main memory grow again; a card's stays limited."""
    if device.type == "cpu":
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def data_bytes() -> int:
    """Bytes that RLIMIT_DATA counts: the private writable memory of this process. 0 where there is no such count."""
    import psutil

    return int(getattr(psutil.Process().memory_info(), "data", 0))
