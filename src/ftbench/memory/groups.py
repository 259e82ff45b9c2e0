"""What a container, a batch job or a service may have of a machine's memory: Linux's control groups, v2 and v1."""

from pathlib import Path, PurePosixPath

_MOUNTS = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}
"""By controller, which v2 does not name: where its groups are, and the file that holds a group's limit."""


def group_limits(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return the bytes that each group around this process may have; in v1 no limit is a very large one.

    A container sees its own group at the root, whatever path it is told: what does not exist is passed over.

    Args:
        own: the file that names the process's groups, as proc(5) describes it.
        root: where groups are mounted.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for folder, file in (_MOUNTS[name] for name in controllers.split(",") if name in _MOUNTS):
            group = PurePosixPath(path.lstrip("/"))
            limits += [_read(root / folder / each / file) for each in (group, *group.parents)]
    return [limit for limit in limits if limit is not None]


def _read(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max"
