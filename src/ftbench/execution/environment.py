"""Where a run happens: the processor and the versions that bear on its figures."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING

from ftbench.errors import UsageError
from ftbench.execution.once import source_digest
from ftbench.plugins import GROUP
from ftbench.results.result import Environment

if TYPE_CHECKING:
    import torch

_PACKAGES = ("ftbench", "torch", "transformers", "tokenizers", "datasets", "scikit-learn", "numpy")

NO_CARD = "device 'cuda' is asked for, and torch sees no CUDA device here; use --device cpu"


def describe(device: "torch.device", precision: str) -> Environment:
    """Name the hardware, the precision, and the versions of what computes on it."""
    import torch

    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    packages = dict.fromkeys([*_PACKAGES, *_needed_by_plugins()])
    versions = {"python": platform.python_version(), **{name: _version(name) for name in packages}}
    return Environment(
        hardware=hardware,
        cores=cores,
        threads=torch.get_num_threads(),
        precision=precision,
        system=f"{platform.system()} {platform.machine()}",
        versions=versions,
        code=source_digest(),
    )


def choose_device(name: str) -> "torch.device":
    """Return the device that a recipe asks for.

    Raises:
        UsageError: CUDA is asked for and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError(NO_CARD)
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def changed_versions(recorded: dict[str, str], plugin: str) -> list[str]:
    """Name what has another version now than when a run was recorded, of all that its figures hang on."""
    names = ["ftbench", "torch", "transformers", *_needed_by_plugins(plugin)]
    return [name for name in names if recorded.get(name) != _version(name)]


def _needed_by_plugins(plugin: str | None = None) -> list[str]:
    """What the installed plugins, or one of them, are built on, and the plugins themselves."""
    names = []
    for entry in entry_points(group=GROUP):
        if entry.dist and plugin in (None, entry.dist.name):
            needs = [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in entry.dist.requires or []]
            names += [entry.dist.name, *needs]
    return sorted(names)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
