"""What control groups allow a process, read from made-up trees of them."""

from pathlib import Path

import pytest

from ftbench.memory.budget import device_memory
from ftbench.memory.groups import group_limits


def make(place: Path, own: str, limits: dict[str, str]) -> tuple[Path, Path]:
    root = place / "cgroup"
    for path, text in limits.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text + "\n")
    (place / "own").write_text(own)
    return place / "own", root


UNLIMITED = "9223372036854771712"
BATCH_JOB = {"memory.max": "max", "slurm/memory.max": "8000", "slurm/job_7/memory.max": "5000", "other/memory.max": "1"}
FIRST = {"memory/docker/7/memory.limit_in_bytes": "6000", "memory/memory.limit_in_bytes": UNLIMITED}
FIRST |= {"cpu/docker/7/memory.limit_in_bytes": "1"}


@pytest.mark.parametrize(
    ("own", "limits", "found"),
    [
        ("0::/slurm/job_7/step_0\n", BATCH_JOB, [5000, 8000]),
        ("0::/\n", {"memory.max": "7000"}, [7000]),  # in a container with a namespace of its own
        ("0::/docker/of-the-host\n", {"memory.max": "7000"}, [7000]),  # and in one without
        ("0::/\n", {}, []),
        ("5:cpu,cpuacct:/docker/7\n9:memory:/docker/7\n0::/\n", FIRST, [6000, int(UNLIMITED)]),
        ("1:name=systemd:/a:b\n", {}, []),
    ],
)
def test_every_group_around_a_process_counts(
    own: str, limits: dict[str, str], found: list[int], tmp_path: Path
) -> None:
    assert group_limits(*make(tmp_path, own, limits)) == found


def test_where_there_are_no_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert group_limits(tmp_path / "none", tmp_path) == []


def test_the_machine_has_no_more_than_its_groups_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftbench.memory.budget.group_limits", lambda: [2**60, 12345])
    assert device_memory("cpu") == 12345
