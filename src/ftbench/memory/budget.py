"""The memory budget: read from text, enforced in the run's own process."""

import re
import resource
from typing import TYPE_CHECKING

from ftbench.errors import UsageError

if TYPE_CHECKING:
    import torch

_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_LARGEST = 2**60


def parse_bytes(text: str) -> int:
    """Read "4GiB", "512 MiB", "8GB" or plain bytes.

    Raises:
        UsageError: not a positive amount in a known unit, or beyond all machines.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in _UNITS:
        raise UsageError(f"cannot read memory budget '{text}'; write for example 4GiB, 800MiB or 6GB")
    amount = float(match[1]) * _UNITS[match[2].lower()]
    if amount < 1:
        raise UsageError(f"memory budget '{text}' is not a positive amount")
    if amount > _LARGEST:
        raise UsageError(f"memory budget '{text}' is more than any machine has; write for example 4GiB, 800MiB or 6GB")
    return int(amount)


def format_bytes(amount: float) -> str:
    """Write bytes in the largest binary unit that leaves at least one: 3221225472 is "3.00 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.2f} {unit}"


def enforce_budget(budget: int | None, device: "torch.device") -> None:
    """Make allocations beyond `budget` bytes fail in this process, from now on.

    CUDA: a cap on the caching allocator. CPU: RLIMIT_DATA, counted from what the process holds now, so that the
    budget is what the run adds to the loaded interpreter.

    Raises:
        UsageError: the budget is more than the card has.
    """
    if budget is None:
        return
    if device.type == "cuda":
        import torch

        total = torch.cuda.get_device_properties(device).total_memory
        if budget > total:
            raise UsageError(f"memory budget {format_bytes(budget)} is more than the card's {format_bytes(total)}")
        torch.cuda.set_per_process_memory_fraction(budget / total, device)
    else:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + budget, hard))


def _data_bytes() -> int:
    """Bytes that RLIMIT_DATA counts: the private writable memory of this process."""
    import psutil

    return int(psutil.Process().memory_info().data)
