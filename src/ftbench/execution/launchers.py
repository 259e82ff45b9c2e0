"""The launchers by name."""

from importlib import import_module
from typing import TYPE_CHECKING

from ftbench.errors import UsageError

if TYPE_CHECKING:
    from ftbench.execution.launcher import Launcher

NAMES = ("local", "ray")


def make_launcher(name: str, jobs: int | None = None, address: str | None = None) -> "Launcher":
    """Make a launcher.

    Args:
        name: one of NAMES.
        jobs: how many runs one machine makes at once, if that is limited.
        address: of the cluster, for a launcher that has one.

    Raises:
        UsageError: an address was given that the launcher has no use for.
    """
    if name == "ray":
        return import_module("ftbench.execution.cluster").RayLauncher(jobs, address)  # type: ignore[no-any-return]
    if address is not None:
        raise UsageError("--ray-address is for --launcher ray")
    return import_module("ftbench.execution.machine").LocalLauncher(jobs)  # type: ignore[no-any-return]
