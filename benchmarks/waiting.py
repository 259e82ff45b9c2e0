"""What it costs that threads wait for one another: alone, beside a busy process, and beside the same once more.

python benchmarks/waiting.py                  about two minutes

Timed is what a layer of a small model asks of a processor, a product of matrices in two threads and then small
operations in one: as libgomp waits by itself and as a run's threads do (`ftbench.waiting`), in turn. The result is
added to benchmarks/waiting/cpu.jsonl.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from origin import machine, now

from ftbench.waiting import WAITING

HERE = Path(__file__).parent
TIMES = 5
LAYER = """
import time, torch
torch.set_num_threads(2)
x, narrow = torch.randn(78, 576).bfloat16(), torch.randn(16, 576).bfloat16()
weights = [torch.randn(1536, 576).bfloat16() for _ in range(40)]
def layers(count):
    for index in range(count):
        torch.nn.functional.linear(x, weights[index % 40])
        (x @ narrow.T).mul_(0.5).view(78, 16).add(1).float().bfloat16()
layers(100)
done, begin = 0, time.perf_counter()
while time.perf_counter() - begin < 3:
    layers(20)
    done += 20
print((time.perf_counter() - begin) / done * 1e6)
"""
NEIGHBOURS: dict[str, list[str]] = {"nothing": [], "a busy process": ["while True: pass"], "the same": [LAYER]}


def main() -> None:
    """Time each way of waiting beside each neighbour, and print it."""
    found: dict[str, dict[str, list[float]]] = {}
    for beside, neighbours in NEIGHBOURS.items():
        for _ in range(TIMES):
            for how, variables in (("libgomp's", {}), ("ours", WAITING)):
                found.setdefault(beside, {}).setdefault(how, []).append(_layer(neighbours, variables))
    row = {
        "when": now(),
        "microseconds": {
            beside: {how: [round(one) for one in times] for how, times in ways.items()}
            for beside, ways in found.items()
        },
        "waiting": WAITING,
        "environment": machine("cpu"),
    }
    path = HERE / "waiting" / "cpu.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    for beside, ways in found.items():
        print(f"beside {beside}: " + ", ".join(f"{how} {median(times):,.0f} us" for how, times in ways.items()))


def _layer(neighbours: list[str], variables: dict[str, str]) -> float:
    """Return microseconds a layer."""
    own = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", *WAITING}
    environment = {name: value for name, value in os.environ.items() if name not in own} | variables
    others = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
        for code in neighbours
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-c", LAYER], env=environment, capture_output=True, text=True, check=True
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout)


if __name__ == "__main__":
    main()
