"""Where a run happens: the processor and the versions that bear on its figures."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ftbench.errors import UsageError
from ftbench.results.result import Environment

if TYPE_CHECKING:
    import torch

_PACKAGES = ("ftbench", "torch", "transformers", "peft", "datasets", "scikit-learn", "numpy")


def describe(device: "torch.device") -> Environment:
    """Name the hardware and the versions of what computes on it."""
    if device.type == "cuda":
        import torch

        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = _processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    versions = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    return Environment(
        hardware=hardware, cores=cores, system=f"{platform.system()} {platform.machine()}", versions=versions
    )


def choose_device(name: str) -> "torch.device":
    """Return the device that a recipe asks for.

    Raises:
        UsageError: CUDA is asked for and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("device 'cuda' is asked for, and torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
