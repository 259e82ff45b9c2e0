"""Whose a folder is that is no run yet, where several machines write into one."""

import os
import platform
from contextlib import suppress
from pathlib import Path


def name_owner() -> str:
    """Name this process as no other is named, whatever machine it is on and whenever it runs.

    A number alone is given again, as soon as a container is started anew; machines may share a name, and all have the
    same first namespace of processes.
    """
    return f"{os.getpid()}.{_began(os.getpid())}@{_machine()}"


def has_ended(owner: str) -> bool:
    """Whether a process of this machine, as it is since its start, is gone; of all others nothing can be known."""
    process, _, machine = owner.partition("@")
    number, _, began = process.partition(".")
    if machine != _machine() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is another user's
    return _began(int(number)) not in ("", began)


def _began(process: int) -> str:
    """Return when a process began, in ticks since the machine's start; nothing where the system does not say."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    return ""


def _machine() -> str:
    """Name the machine, since its start, and where on it processes have their numbers."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip().replace("-", "")[:12])
    return ".".join(parts)
