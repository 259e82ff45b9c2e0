"""CPU time of commands that must not load torch: user and system seconds of the whole process.

pytest benchmarks/bench_cli.py
"""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

LIMIT = 0.3
RUNS = str(Path(__file__).parent / "quick")


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["algos"], ["table", "--out", RUNS]], ids=["help", "algos", "table"])
def test_cpu_time(benchmark: BenchmarkFixture, arguments: list[str]) -> None:
    command = [str(Path(sys.executable).with_name("ftbench")), *arguments]
    used: list[float] = []

    def call() -> None:
        before = cpu_seconds()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        used.append(cpu_seconds() - before)

    benchmark.pedantic(call, rounds=11, warmup_rounds=1)  # type: ignore[no-untyped-call]
    median = sorted(used)[len(used) // 2]
    benchmark.extra_info["cpu_seconds_median"] = median
    print(f"{' '.join(arguments[:1])}: {median:.3f} s of CPU time (median of {len(used)})")
    assert median < LIMIT
