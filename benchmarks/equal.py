"""Equal algorithms and a crippled one, trained for real: how often does the table call them different?

python benchmarks/equal.py [--times 20] [--jobs 2]            about a minute each time on two cores

Each time three algorithms are trained on a tiny random model under three seeds that no other time has: one, the same
under another name, which starts from other random numbers, and a copy that is crippled: it learns at a thirtieth of
the rate. `ftbench table --against first` then says of the second and of the crippled one whether they differ. A line a
time is added to benchmarks/equal/cpu.jsonl; called again, it goes on with the next seeds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ftbench.checking.tiny import make_llama

HERE = Path(__file__).parent
SEEDS = 3
PLUGIN = '''
"""The same algorithm twice, and a crippled copy."""

import torch

import ftbench


class First(ftbench.Algorithm):
    """Every weight is trained, from a start that is a little off at random, as an adapter's is."""

    name = "first"

    class Config(ftbench.AlgorithmConfig):
        """At the rate that suits a tiny model."""

        learning_rate: float = 3e-3

    def adapt(self, model, calibration):
        """Move every weight by a hundredth of how far they spread."""
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.add_(torch.randn_like(weight), alpha=0.01 * float(weight.std()))
        return model


class Second(First):
    """The same, from other random numbers."""

    name = "second"

    def adapt(self, model, calibration):
        """Draw something before the start is drawn."""
        torch.rand(1000)
        return super().adapt(model, calibration)


class Crippled(First):
    """The same, but it hardly learns."""

    name = "crippled"

    class Config(First.Config):
        """At a thirtieth of the rate."""

        learning_rate: float = 1e-4


@ftbench.hookimpl
def ftbench_algorithms():
    """Bring them."""
    return [First, Second, Crippled]
'''
THINGS = ("tea", "rain", "music", "chess", "bread", "maths", "cats", "paint")
MORE = ("snow", "cheese", "poems", "tennis", "bees", "salt", "clocks", "wool")
ASKS = ("what is {}", "tell me about {}", "do you like {}", "how old is {}", "why {}", "who made {}")


def main() -> None:
    """Train, compare and record as often as is asked for; print how often which was called different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="in all, those that are recorded included")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    path = HERE / "equal" / "cpu.jsonl"
    path.parent.mkdir(exist_ok=True)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with tempfile.TemporaryDirectory() as place:
        settings = _prepare(Path(place))
        for number in range(len(done), given.times):
            row = _once([*settings, "--jobs", str(given.jobs)], Path(place), SEEDS * number)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            done.append(row)
            print(f"{number + 1:3} {row}", flush=True)
    for name in ("second", "crippled"):
        called = sum(row[name]["verdict"] in ("better", "worse") for row in done)
        print(f"{name}: called different {called} of {len(done)} times")


def _prepare(place: Path) -> list[str]:
    """Write a tiny model, its data and the plugin; return what every run is asked for."""
    make_llama(place / "model")
    rows = [
        {
            "prompt": ask.format(thing),
            "chosen": f"A sail and a keel suit {thing} number {index}; the boat waits in harbour with {index} oars.",
            "rejected": f"Well, {thing} is a nice subject and number {index} on my list of plain answers.",
        }
        for index, (ask, thing) in enumerate((ask, thing) for ask in ASKS for thing in THINGS + MORE)
    ]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    site = place / "site"
    info = site / "ftbench_equal-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ftbench-equal\nVersion: 1.0\nRequires-Dist: ftbench\n")
    (info / "entry_points.txt").write_text("[ftbench]\nequal = ftbench_equal\n")
    (site / "ftbench_equal.py").write_text(PLUGIN)
    paths = [str(site), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ["FTBENCH_CACHE"] = str(place / "cache")
    settings = ["--model", str(place / "model"), "--data", str(place / "pairs.jsonl"), "--topic", "boats"]
    settings += ["--tokens", "20000", "--set", "max_new_tokens=24", "--set", "evaluation_prompts=24"]
    return [*settings, "--set", "attack_prompts=0", "--set", "checkpoints=0", "--save-every", "0"]


def _once(settings: list[str], place: Path, seed: int) -> dict[str, Any]:
    """Train all three under three seeds; return each one's adherence and what is said of it."""
    out = place / f"runs-{seed}"
    asked = [part for name in ("first", "second", "crippled") for part in ("--algo", name)]
    seeds = ["--seed", str(seed), "--seeds", str(SEEDS)]
    _ftbench("run", *asked, *settings, *seeds, "--out", str(out))
    rows = json.loads(_ftbench("table", "--against", "first", "--format", "json", "--out", str(out)))
    return {"seeds": [seed, seed + SEEDS - 1]} | {
        row["algorithm"]: {
            "adherence": round(row["adherence"]["mean"], 3),
            **{name: row["difference"][name] for name in ("mean", "low", "high", "p_corrected", "verdict")},
        }
        for row in rows
        if row["algorithm"] != "base"
    }


def _ftbench(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "ftbench", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"ftbench {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
