import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftbench.errors import UsageError
from ftbench.memory.budget import format_bytes, parse_bytes
from ftbench.memory.meter import Meter

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the budget and resets peaks")


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4GiB", 4 * 2**30),
        (" 512 MiB ", 512 * 2**20),
        ("8GB", 8 * 10**9),
        ("1.5gib", 3 * 2**29),
        ("7 kB", 7000),
        ("2TiB", 2**41),
        ("12345", 12345),
        ("100b", 100),
    ],
)
def test_budgets_are_read(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "0.2",
        "0 GiB",
        "-1",
        "-4GiB",
        "4 apples",
        "",
        " ",
        "GiB",
        "4,5GiB",
        "1e9",
        "1.2.3GB",
        "nan",
        "inf",
        "4 G iB",
    ],
)
def test_what_is_no_budget_is_a_one_line_error_that_names_it(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_bytes(text)
    assert f"memory budget '{text}'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "GiB", "1" + "0" * 300 + "TiB", "99999999999TiB"])
def test_a_budget_beyond_all_machines_is_a_one_line_error(text: str) -> None:
    with pytest.raises(UsageError, match="memory budget"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (512 * 2**20, "512.00 MiB"),
        (3221225472, "3.00 GiB"),
        (5 * 2**40, "5120.00 GiB"),
    ],
)
def test_bytes_are_written_in_the_largest_unit_that_leaves_one(amount: int, text: str) -> None:
    assert format_bytes(amount) == text


@given(st.integers(1, 2**50))
def test_what_is_written_is_read_back_to_half_a_hundredth_of_its_unit(amount: int) -> None:
    assert abs(parse_bytes(format_bytes(amount)) - amount) <= 0.005 * amount + 1


BUDGET = """
import sys, torch
from ftbench.memory.budget import enforce_budget
torch.ones(8, 8) @ torch.ones(8, 8)
enforce_budget({budget}, torch.device("cpu"))
for size in {sizes}:
    try:
        made = torch.ones(size * 2**20, dtype=torch.uint8)
    except Exception as error:
        print(size, type(error).__name__, str(error).replace("\\n", " "))
    else:
        print(size, "made", int(made[-1]))
        del made
"""


def allocate(budget: int | None, sizes: list[int]) -> list[str]:
    """Set a budget in a process of its own, then allocate `sizes` MiB one after the other."""
    script = BUDGET.format(budget=budget, sizes=sizes)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@linux
def test_allocations_within_the_budget_succeed_and_beyond_it_fail_cleanly() -> None:
    under, beyond, after = allocate(400 * MIB, [380, 420, 380])
    assert under == "380 made 1"
    assert beyond.startswith("420 RuntimeError")
    assert "DefaultCPUAllocator" in beyond
    assert "allocate" in beyond
    assert after == "380 made 1"


def test_without_a_budget_nothing_is_limited() -> None:
    assert allocate(None, [420]) == ["420 made 1"]


@pytest.fixture
def meter() -> Meter:
    return Meter(torch.device("cpu"))


@linux
def test_an_allocation_is_in_its_own_phases_peak_and_in_no_other(meter: Meter) -> None:
    with meter.phase("before"):
        pass
    with meter.phase("numpy"):
        array = np.ones(200 * MIB, dtype=np.uint8)
        del array
    with meter.phase("between"):
        pass
    with meter.phase("torch"):
        tensor = torch.ones(200 * MIB, dtype=torch.uint8)
        del tensor
    with meter.phase("after"):
        pass
    for small in ("before", "between", "after"):
        for big in ("numpy", "torch"):
            assert meter.peak[big] - meter.peak[small] == pytest.approx(200 * MIB, rel=0.1)


@linux
def test_the_largest_peak_of_a_repeated_phase_is_kept(meter: Meter) -> None:
    with meter.phase("twice"):
        array = np.ones(200 * MIB, dtype=np.uint8)
        del array
    first = meter.peak["twice"]
    with meter.phase("twice"):
        pass
    assert meter.peak["twice"] == first


@linux
def test_the_peak_can_be_read_within_a_phase(meter: Meter) -> None:
    with meter.phase("one"):
        before = meter.read_peak()
        array = np.ones(200 * MIB, dtype=np.uint8)
        del array
        assert meter.read_peak() - before == pytest.approx(200 * MIB, rel=0.1)


def test_the_seconds_of_a_repeated_phase_add_up(meter: Meter) -> None:
    for _ in range(2):
        with meter.phase("twice"):
            time.sleep(0.05)
    with meter.phase("once"):
        time.sleep(0.05)
    assert 0.1 <= meter.seconds["twice"] < 10
    assert 0.05 <= meter.seconds["once"] < 10


def test_figures_are_kept_when_a_phase_raises(meter: Meter) -> None:
    def fail() -> None:
        with meter.phase("failing"):
            time.sleep(0.02)
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert meter.seconds["failing"] >= 0.02
    assert meter.peak["failing"] > 10 * MIB


def test_the_meter_says_what_it_measures(meter: Meter) -> None:
    with meter.phase("any"):
        pass
    assert meter.kind == "resident"
    assert meter.reserved == {}
