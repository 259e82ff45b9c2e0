"""How long `ftbench check` takes, by algorithm: it should be under a minute for each.

python benchmarks/checks.py                 some minutes, alone on the machine

Every algorithm that is installed is checked at its defaults, in a process of its own as an author's is: imports are in
its seconds, for the most part in those of the first checks. The result is added to benchmarks/checks/cpu.jsonl.
"""

import json
from pathlib import Path
from tempfile import TemporaryFile

from timed import once

from ftbench.plugins import load_plugins

HERE = Path(__file__).parent
LIMIT = 60.0
"""Seconds of one algorithm's checks."""


def main() -> None:
    """Check every algorithm, and print what it took."""
    path = HERE / "checks" / "cpu.jsonl"
    path.parent.mkdir(exist_ok=True)
    slow = []
    for name in load_plugins().all_names:
        with TemporaryFile("w+") as out:
            seconds, resident = once(["check", name, "--json"], out)
            out.seek(0)
            checks = json.load(out)
        row = {
            "algorithm": name,
            "seconds": round(seconds, 1),
            "checks": {check["check"]: check["seconds"] for check in checks},
            "skipped": [check["check"] for check in checks if check["verdict"] == "skipped"],
            "resident_bytes": resident,
        }
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name:10} {seconds:6.1f} s  {resident / 2**20:5.0f} MiB", flush=True)
        slow += [name] if seconds > LIMIT else []
    print(f"over {LIMIT:.0f} s: {', '.join(slow) or 'none'}")


if __name__ == "__main__":
    main()
