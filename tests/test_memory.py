import os
import platform
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftbench.errors import UsageError
from ftbench.memory.budget import device_memory, enforce_budget, format_bytes, parse_bytes
from ftbench.memory.fit import is_out_of_memory
from ftbench.memory.heap import prompt_memory
from ftbench.memory.meter import Highest, Meter

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


HOLES = """
import torch
from ftbench.memory.budget import data_bytes

small, kept = [], []
before = data_bytes()
for turn in range(60):
    made = [torch.empty(220_000 + 4 * (turn // 15)) for _ in range(6)]  # of each length by which they can be aligned
    kept.append(made[0])
    del made
    small += [torch.empty(2) for _ in range(40)]
print(data_bytes() - before - sum(one.nbytes for one in kept))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
@pytest.mark.parametrize("limited", [True, False])
def test_what_is_freed_between_tensors_that_stay_is_used_again(limited: bool) -> None:
    settings = {**os.environ, **prompt_memory(limited=limited)}
    done = subprocess.run([sys.executable, "-c", HOLES], env=settings, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 * MIB  # beside 50 MiB that stay; 140 more with glibc 2.36 as it is


def test_the_settings_are_added_to_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.perturb=1")
    assert prompt_memory(limited=False)["GLIBC_TUNABLES"].startswith("glibc.malloc.perturb=1:glibc.malloc.tcache")
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert prompt_memory(limited=False)["GLIBC_TUNABLES"].startswith("glibc.malloc.tcache")


def test_without_a_budget_nothing_is_limited() -> None:
    assert allocate(None, [420]) == ["420 made 1"]


@pytest.mark.parametrize(("name", "index"), [("cuda", 3), ("cuda:1", 1)])
def test_a_cards_allocator_is_capped_at_the_budgets_share_of_the_card(
    name: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    capped: list[tuple[float, int]] = []
    monkeypatch.setattr("ftbench.memory.budget.device_memory", lambda _: 80 * 2**30)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr("torch.cuda.memory._lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda *given: capped.append(given), raising=False)
    enforce_budget(20 * 2**30, torch.device(name))
    assert capped == [(0.25, index)]
    with pytest.raises(UsageError, match="is more than the"):
        enforce_budget(81 * 2**30, torch.device(name))
    assert len(capped) == 1


def test_a_budget_beyond_the_machine_is_one_line_and_limits_nothing() -> None:
    with pytest.raises(UsageError, match="is more than the") as error:
        enforce_budget(900 * 2**40, torch.device("cpu"))
    assert "\n" not in str(error.value)


@linux
def test_a_limit_that_the_process_is_under_already_bounds_the_budget() -> None:
    script = f"""
import resource, torch
from ftbench.memory.budget import data_bytes, device_memory, enforce_budget
hard = data_bytes() + 300 * {MIB}
resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
assert device_memory("cpu") == hard
enforce_budget(hard, torch.device("cpu"))
assert resource.getrlimit(resource.RLIMIT_DATA) == (hard, hard)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _raised(error: BaseException, cause: BaseException | None = None, during: BaseException | None = None) -> Exception:
    error.__cause__, error.__context__ = cause, during
    assert isinstance(error, Exception)
    return error


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
CIRCLE = ValueError("a")
CIRCLE.__context__ = _raised(ValueError("b"), CIRCLE)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (CUDA, True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (_raised(RuntimeError("the fused kernel failed"), MemoryError()), True),
        (_raised(KeyError("cache"), None, CUDA), True),
        (_raised(ValueError(), _raised(TypeError(), None, MemoryError())), True),
        (CIRCLE, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (ValueError("memory"), False),
        (_raised(KeyError("cache"), ValueError("x"), TypeError("y")), False),
    ],
)
def test_an_exhausted_memory_is_known_by_whoever_says_so(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_the_memory_of_a_card_that_is_not_there_is_not_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="torch sees no CUDA device here; give the budget in bytes"):
        device_memory("cuda")
    assert device_memory("auto") == device_memory("cpu") > 0


def test_on_a_card_the_allocators_and_the_drivers_figures_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [70, 60, 75, 75]  # of 100, as the phases end
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 15)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free.pop(0), 100))
    meter = Meter(torch.device("cuda"))
    for name in ("load", "train", "train"):
        with meter.phase(name):
            pass
    assert meter.peak == {"load": 15, "train": 15}
    assert meter.reserved == {"load": 20, "train": 20}
    assert meter.driver == {"load": 30, "train": 40}
    with meter.phase("train"):
        meter.hold(Highest(70, 80))
        assert meter.apart(lambda: "done") == ("done", Highest(15, 20))
    assert (meter.peak["train"], meter.reserved["train"]) == (70, 80)


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


def _touch(size: int) -> int:
    np.ones(size, dtype=np.uint8)
    return size


@linux
def test_a_part_of_a_phase_has_peaks_of_its_own_that_count_in_the_phase_too(meter: Meter) -> None:
    with meter.phase("none"):
        pass
    none = meter.peak["none"]
    for first, part, last in ((100, 300, 200), (300, 100, 200), (100, 200, 300)):
        name = f"{first}, {part}, {last}"
        with meter.phase(name):
            _touch(first * MIB)
            done, own = meter.apart(lambda part=part: _touch(part * MIB))  # type: ignore[misc]
            assert done == part * MIB
            assert own.peak - none == pytest.approx(part * MIB, rel=0.1)
            assert meter.read_peak() - none == pytest.approx(max(first, part) * MIB, rel=0.1)
            _touch(last * MIB)
        assert meter.peak[name] - none == pytest.approx(300 * MIB, rel=0.1)


def test_what_another_process_reached_counts_in_the_phase_under_way_alone(meter: Meter) -> None:
    with meter.phase("taken"):
        meter.hold(Highest(2**50))
        meter.hold(Highest(2**40))
    with meter.phase("after"):
        pass
    assert meter.peak["taken"] == 2**50
    assert meter.peak["after"] < 2**50


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
    assert meter.reserved == meter.driver == {}
